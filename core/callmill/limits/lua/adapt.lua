-- Part of reserve and throttled: the factor by which a pace differs from its configured rate.
--
-- A pace that an API refused though it was kept slows down (factor < 1) and probes its way back; a pace whose limit nobody
-- knows finds it in the same way, without an upper end. Modes: start (x 1.25 a second until the first refusal), hold (wait),
-- probe (+ 1 % every 3 s until the next refusal). A server's bucket hides for a while that a probe went too far: a
-- refused probe falls back to what seemed good, and if that is refused too, to what held all through a wait (sure); then the
-- next one falls back to half as far above that (reach). Each refused probe doubles the wait, up to 10 minutes; one that gets
-- beyond the last refused one (top) makes it short again, and well beyond it goes on by 5 %.
--
-- Invariants: one change per refusal that counts; no increase while something else limits the calls, or while there have
-- been too few of them to show what the API takes; never above the most.
local adapt = {}
local STEP, STEP_US, GROWTH, GROWTH_US, FAR = 1.01, 3000000, 1.25, 1000000, 1.05
local HOLD_US, LONGEST_HOLD_US, LEAST, LEAST_DROP, CALM_US = 30000000, 600000000, 0.001, 0.02, 60000000
adapt.FIELDS = { 'good', 'sure', 'top', 'hold', 'since', 'drop', 'most', 'reach' }

function adapt.read(x, factor, mode)
  x.factor, x.mode = tonumber(factor or 1), mode or ''
  if x.mode == '' then return end
  local h = redis.call('HMGET', x.key, unpack(adapt.FIELDS))
  x.good, x.sure, x.top = tonumber(h[1] or x.factor), tonumber(h[2] or x.factor), tonumber(h[3] or 0)
  x.hold, x.since = tonumber(h[4] or HOLD_US), tonumber(h[5] or 0)
  x.drop, x.most, x.reach = tonumber(h[6] or LEAST_DROP), tonumber(h[7] or 1), tonumber(h[8] or 1)
end

local function set(x, mode, factor)
  x.mode, x.since = mode, now
  x.factor = math.max(LEAST, math.min(factor, x.most))
  if x.most == 1 and x.factor == 1 then x.mode = '' end
  redis.call('HSET', x.key, 'factor', x.factor, 'mode', x.mode, 'good', x.good, 'sure', x.sure, 'top', x.top,
    'hold', x.hold, 'since', text(x.since), 'drop', x.drop, 'reach', x.reach)
end

function adapt.raise(x) -- calls wait for this pace and nothing else
  local lasted = now - math.max(x.since, x.busy)
  if x.mode == 'start' and lasted >= GROWTH_US then
    x.good = x.factor
    set(x, 'start', x.factor * GROWTH)
  elseif x.mode == 'probe' and lasted >= STEP_US then
    x.good = x.factor
    if x.factor > x.top then x.hold, x.reach = HOLD_US, 1 end
    set(x, 'probe', x.factor * (x.factor > FAR * x.top and FAR or STEP))
  elseif x.mode == 'hold' and now - x.since >= x.hold and lasted >= STEP_US then
    x.good, x.sure, x.drop = x.factor, x.factor, LEAST_DROP
    set(x, 'probe', x.factor * STEP)
  end
end

local function lower_still(x) -- further and further down while refusals go on
  if now - x.since > CALM_US then x.drop = LEAST_DROP end
  x.sure = x.factor * (1 - x.drop)
  x.drop = math.min(0.3, 2 * x.drop)
  set(x, 'hold', x.sure)
end

function adapt.lower(x) -- the API refused a call that this pace allowed
  if x.mode == 'start' then
    x.top, x.sure = x.factor, math.min(x.good, x.factor / GROWTH) * (1 - LEAST_DROP)
    set(x, 'hold', x.sure)
  elseif x.mode == 'probe' then
    x.top, x.hold = x.factor, math.min(2 * x.hold, LONGEST_HOLD_US)
    set(x, 'hold', x.sure + math.max(0, x.good * (1 - LEAST_DROP / 2) - x.sure) * x.reach)
  elseif x.mode == 'hold' and x.factor > x.sure then
    x.reach = x.reach / 2
    set(x, 'hold', x.sure)
  else
    if x.mode == '' then
      x.top, x.hold, x.drop, x.most, x.reach, x.good, x.since = 1, HOLD_US / 3, 0.05, 1, 1, 1, now
    end
    lower_still(x)
  end
end
