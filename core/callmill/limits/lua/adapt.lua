-- Part of reserve and refused: the factor by which a pace differs from its configured rate.
--
-- A pace that an API refuses slows down (factor < 1) and probes its way back; a pace whose limit nobody knows is found in
-- the same way, without an upper end. Modes:
--   start  begins between what was delivered from one refusal to the next, which the API surely takes, and the pace that
--          it refused, nearer to the former; grows every half second, each refusal cuts the growth to a third. It ends when
--          the two are close, or a refusal comes near the last refused pace. Where a row of refusals shows that the API may
--          count windows, it grows only after each such period.
--   hold   wait.
--   probe  + 1 % every 3 s until the next refusal. A server's bucket hides for a while that a probe went too far: a refused
--          probe falls back to what seemed good, and if that is refused too, to what held all through a wait (sure); then
--          the next one falls back to half as far above that (reach). Each refused probe doubles the wait, up to the time
--          of 3 000 calls; one that gets well beyond the last refused one (top) makes it short again, and
--          goes on by 5 %.
--
-- Invariants: one change per refusal that counts; no increase while something else limits the calls, or while there have
-- been too few of them to show what the API takes; never above the most.
local adapt = {}
local STEP, STEP_US, GROWTH, GROWTH_US, FAR = 1.01, 3000000, 1.5, 500000, 1.05
local HOLD_US, LONGEST_HOLD_US, HOLD_CALLS, LEAST, LEAST_DROP = 30000000, 600000000, 3000, 0.0001, 0.02
local FORGOTTEN = 4 -- a learned pace beyond so many times the refused one is dropped
local GROWTH_CALLS, FORGETS = 10, 1.3 -- what was taken at a much slower pace counts less and less
local CALM_US, CLOSE, NEAR, LEAST_GROWTH, WINDOW_GROWTH, BURST, UNSHAKEN, TOLD_PERIODS =
  60000000, 0.9, 0.85, 1.06, 1.1, 1.2, 0.7, 10

function adapt.read(x, factor, mode)
  x.factor, x.mode = tonumber(factor or 1), mode or ''
  if x.mode == '' then return end
  local h = read_learned(x.key)
  x.good, x.sure, x.top = tonumber(h.good or x.factor), tonumber(h.sure or x.factor), tonumber(h.top or 0)
  x.hold, x.since = tonumber(h.hold or HOLD_US), tonumber(h.since or 0)
  x.drop, x.most, x.reach = tonumber(h.drop or LEAST_DROP), tonumber(h.most or 1), tonumber(h.reach or 1)
  x.growth, x.period = tonumber(h.growth or GROWTH), tonumber(h.period or 0)
  x.learned_at, x.refused = tonumber(h.learned_at or now), tonumber(h.refused or x.top)
end

-- For people: what was learned of which limit, in a field pace:LIMIT of the meta hash, as "units a second, us of when it was
-- learned, units a second that were refused".
local function tell(x)
  local field = 'pace:' .. string.match(x.key, '}:limit:(.*)$')
  if x.mode == '' then return redis.call('HDEL', META, field) end
  local per_s = x.amount * 1000000 / x.window
  redis.call('HSET', META, field, string.format('%.4g %.0f %.4g', per_s * x.factor, x.learned_at, per_s * x.top))
end

local function set(x, mode, factor)
  x.mode, x.since = mode, now
  x.factor = math.max(LEAST, math.min(factor, x.most))
  if x.most == 1 and x.factor == 1 then x.mode = '' end
  redis.call('HSET', x.key, 'factor', x.factor, 'mode', x.mode, 'good', x.good, 'sure', x.sure, 'top', x.top, 'hold', x.hold,
    'since', text(x.since), 'drop', x.drop, 'most', x.most, 'reach', x.reach, 'growth', x.growth,
    'learned_at', text(x.learned_at), 'period', text(x.period), 'refused', x.refused)
  tell(x)
end

-- The first refusal of a pace that nobody wrote down. lately: at which the API took calls; period: where a hint tells how
-- many it takes in how many us, else 0.
function adapt.begin(x, factor, lately, most, period)
  x.good, x.sure, x.hold, x.drop, x.most, x.reach = factor, factor, HOLD_US, LEAST_DROP, most, 1
  x.top, x.growth, x.period = 0, GROWTH, 0
  if period > 0 then x.top, x.growth, x.period = factor, WINDOW_GROWTH, math.max(HOLD_US, TOLD_PERIODS * period) end
  x.refused, x.learned_at, x.is_new = lately, now, true
  set(x, 'start', factor)
end

-- The API took no call for some time after a refusal: if it counts windows, it takes so many calls in the long run, and more
-- than the highest only in bursts. was: the factor that was refused; period: how long a window may be, us; again_at: when it
-- takes calls again, at the latest. A pace that had proved itself comes down by a part only: perhaps others were at work.
function adapt.bound(x, factor, was, highest, period, again_at)
  if x.mode == '' then return end -- what is written down holds until a refusal tells more
  local searching = x.mode == 'start'
  if not searching then factor = math.max(factor, UNSHAKEN * was) end
  if factor < x.factor and (searching or factor < CLOSE * was) then
    x.good, x.sure, x.growth, x.period, x.drop = factor, factor, WINDOW_GROWTH, period, LEAST_DROP
    if searching and (x.top == 0 or highest < x.top) then x.top = highest end
    set(x, x.mode, factor)
  end
  if not searching then x.mode = 'hold' end
  x.since = again_at
  redis.call('HSET', x.key, 'mode', x.mode, 'since', text(again_at))
end

local function longest_hold(x)
  return math.max(HOLD_US, math.min(LONGEST_HOLD_US, HOLD_CALLS * x.window / (x.amount * x.factor)))
end

local function forgotten(x) -- nobody wrote it down, and the API takes far more than it once refused
  if not x.learned or x.owner ~= 0 or x.top == 0 or x.factor < FORGOTTEN * x.refused then return false end
  x.mode, x.factor = '', x.most
  redis.call('HSET', x.key, 'mode', '', 'factor', x.most)
  redis.call('HDEL', META, 'learned_pace')
  tell(x)
  return true
end

-- Calls wait for this pace and nothing else. Returns whether a pace that was learned is dropped.
function adapt.raise(x)
  if x.mode ~= 'hold' and forgotten(x) then return true end
  local lasted = now - math.max(x.since, x.busy)
  local calls_us = x.top and x.top > 0 and GROWTH_CALLS * x.window / (x.amount * x.factor) or 0
  if x.mode == 'start' and lasted >= math.max(GROWTH_US, x.period, calls_us) then
    x.good = x.factor
    if x.most == 1 and x.factor * x.growth >= x.top then
      set(x, 'hold', x.factor)
    else
      if x.factor > x.top then x.growth = math.min(GROWTH, 2 * x.growth - 1) end
      if x.factor > BURST * x.top then x.period = 0 end -- more than any such window holds
      if x.growth > FORGETS then x.taken, x.taken_from = x.taken / 2, (now + x.taken_from) / 2 end
      set(x, 'start', x.factor * x.growth)
    end
  elseif x.mode == 'probe' and lasted >= math.max(STEP_US, x.period) then
    x.good = x.factor
    if x.factor > FAR * x.top then x.hold, x.reach, x.period = HOLD_US, 1, 0 end
    set(x, 'probe', x.factor * (x.factor > FAR * x.top and FAR or STEP))
  elseif x.mode == 'hold' and now - x.since >= x.hold and lasted >= STEP_US then
    x.good, x.sure, x.drop, x.taken, x.taken_from = x.factor, x.factor, LEAST_DROP, 0, now
    set(x, 'probe', x.factor * STEP)
  end
end

local function lower_still(x, delivered) -- further and further down while refusals go on
  if now - x.since > CALM_US then x.drop = LEAST_DROP end
  x.sure = x.factor * (1 - x.drop)
  if delivered and delivered < x.sure then x.sure = delivered * (1 - LEAST_DROP) end
  x.drop = math.min(0.3, 2 * x.drop)
  set(x, 'hold', x.sure)
end

local function bracket(x, delivered, doubt)
  delivered = math.min(delivered, x.factor)
  local close = delivered >= CLOSE * x.factor or math.abs(x.factor - x.top) < (1 - CLOSE) * x.top
  local other, weight = x.top > 0 and x.factor or x.good, x.top > 0 and 0.33 or 0.5
  x.sure = delivered * math.max(1, other / delivered) ^ (weight * doubt)
  if close then x.sure = math.min(x.sure, x.factor * (1 - LEAST_DROP)) end
  x.top, x.growth = x.factor, math.max(LEAST_GROWTH, 1 + (x.growth - 1) / 3)
  set(x, close and 'hold' or 'start', x.sure)
end

-- The API refused a call that this pace allowed. delivered: what it took since the refusal before, as a factor; nil where
-- nothing is known. doubt: how far that may be from the truth, 0 to 1.
function adapt.lower(x, delivered, doubt)
  if x.mode == '' then
    x.top, x.hold, x.drop, x.most, x.reach, x.good, x.since, x.growth = 1, HOLD_US / 3, 0.05, 1, 1, 1, now, 1.2
    x.learned_at, x.period, x.is_new = now, 0, true
  end
  x.refused = x.factor
  if x.mode == 'start' or delivered and delivered < CLOSE * CLOSE * math.min(x.factor, x.sure or x.factor) then
    if x.mode ~= 'start' then x.growth, x.top, x.good, x.hold = GROWTH, 0, delivered, HOLD_US end -- the limit is another
    bracket(x, math.max(LEAST, math.min(delivered or x.factor / GROWTH, x.factor)), doubt)
  elseif x.mode == 'probe' then
    x.top, x.hold = x.factor, math.min(2 * x.hold, longest_hold(x))
    local good = x.good * (1 - LEAST_DROP / 2)
    if delivered and delivered >= NEAR * x.factor then
      set(x, 'hold', math.max(x.sure, math.min(good, math.sqrt(delivered * x.good) * (1 - LEAST_DROP / 2))))
    else
      set(x, 'hold', x.sure + math.max(0, good - x.sure) * x.reach)
    end
  elseif x.mode == 'hold' and x.factor > x.sure then
    x.reach = x.reach / 2
    set(x, 'hold', math.max(x.sure, math.min(delivered or 0, x.factor) * (1 - LEAST_DROP)))
  else
    lower_still(x, delivered)
  end
end
