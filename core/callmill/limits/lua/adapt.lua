-- Part of reserve and throttled: the factor by which a pace differs from its configured rate.
--
-- A pace that an API refused though it was kept slows down (factor < 1) and probes its way back; a pace whose limit nobody
-- knows finds it in the same way, without an upper end. Modes: start (x 1.25 a second until the first refusal), hold (wait),
-- probe (+ 1 % every 3 s until the next refusal). Each refusal while probing doubles the wait, up to 10 minutes.
--
-- Invariants: one change per refusal that counts; no increase while something else limits the calls; never above the most.
local adapt = {}
local STEP, STEP_US, GROWTH, GROWTH_US = 1.01, 3000000, 1.25, 1000000
local HOLD_US, LONGEST_HOLD_US, LEAST = 30000000, 600000000, 0.001

function adapt.read(x, factor, mode, good, hold, since, drop, most)
  x.factor, x.mode = tonumber(factor or 1), mode or ''
  if x.mode == '' then return end
  x.good, x.hold, x.since = tonumber(good or x.factor), tonumber(hold or HOLD_US), tonumber(since or 0)
  x.drop, x.most = tonumber(drop or 0.02), tonumber(most or 1)
end

local function save(x)
  redis.call('HSET', x.key, 'factor', x.factor, 'mode', x.mode, 'good', x.good, 'hold', x.hold, 'since', text(x.since),
    'drop', x.drop)
end

local function set(x, mode, factor)
  x.mode, x.since = mode, now
  x.factor = math.max(LEAST, math.min(factor, x.most))
  if x.most == 1 and x.factor == 1 then x.mode = '' end
  save(x)
end

function adapt.raise(x) -- calls wait for this pace and nothing else
  local lasted = now - x.since
  if x.mode == 'start' and lasted >= GROWTH_US then
    x.good = x.factor
    set(x, 'start', x.factor * GROWTH)
  elseif x.mode == 'probe' and lasted >= STEP_US then
    x.good, x.hold, x.drop = x.factor, HOLD_US, 0.02
    set(x, 'probe', x.factor * STEP)
  elseif x.mode == 'hold' and lasted >= x.hold then
    x.good = x.factor
    set(x, 'probe', x.factor * STEP)
  end
end

function adapt.lower(x) -- the API refused a call that this pace allowed
  if x.mode == 'start' then
    set(x, 'hold', math.min(x.good, x.factor / GROWTH) * 0.98)
  elseif x.mode == 'probe' then
    x.hold = math.min(2 * x.hold, LONGEST_HOLD_US)
    set(x, 'hold', x.good * 0.98)
  else -- a refusal while it holds: further and further down
    if x.mode == '' then x.good, x.hold, x.drop, x.most = 1, HOLD_US / 3, 0.05, 1 end
    set(x, 'hold', x.factor * (1 - x.drop))
    x.drop = math.min(0.3, 2 * x.drop)
    x.good = x.factor
    save(x)
  end
end
