-- Part of permits and refused: how many calls may be in flight at once, where nobody knows how many an API takes.
--
-- The state is in the meta hash of the permits: most (calls at once; absent: not limited), and how it is found:
--   start  grows by half with each round of answers, or every second where a round takes longer, until the API refuses or
--          becomes slow.
--   hold   wait, then start trying again; each failure near the same number doubles the wait, up to a minute after refusals
--          and ten minutes where the API became slow.
--   try    grows by an eighth with each round of answers; beyond the number that failed, start again.
-- Slow: the mean latency of a round is 1.6 times the least of the rounds before, beyond doubt (one standard error), or as
-- well as can be told from four rounds. Little's law then tells how many calls are of use: what is answered a second times
-- the least latency, and half as many more to keep the API busy.
--
-- Invariants: no growth while there are fewer calls than may be in flight; every change begins a new round.
local in_flight = {}
local CERTAIN, DOUBTFUL, SAMPLES = 0.05, 0.2, 16
local FIRST, GROWTH, TRY, WAIT_US, REFUSED_US, SLOW_US, ROUND_US = 4, 1.5, 0.125, 2000000, 60000000, 600000000, 1000000
local SLOW, SPARE, NEAR, ROUNDS, FAST_US, LEVEL_US, REMEMBERED_US, MINUTE_US =
  1.6, 1.5, 1.25, 4, 20000, 50000, 1000000, 60000000
local FORGOTTEN, FEWER, STEADY = 4, 0.75, 0.85
local TIMES = { 'since', 'taken_from', 'minute_from', 'learned_at' }

function in_flight.read(key, now, told)
  local h = read_in_flight(key)
  local x = { key = key, now = now, told = told, stored = h }
  for name, value in pairs(h) do x[name] = tonumber(value or 0) end
  x.mode, x.why = h.mode or '', h.why or ''
  return x
end

function in_flight.write(x)
  local fields = {}
  for name in pairs(x.stored) do
    fields[#fields + 1] = name
    fields[#fields + 1] = type(x[name]) == 'number' and string.format('%.6g', x[name]) or x[name]
  end
  for _, name in ipairs(TIMES) do
    fields[#fields + 1] = name
    fields[#fields + 1] = string.format('%.0f', x[name])
  end
  redis.call('HSET', x.key, unpack(fields))
end

-- So many calls were taken since the last renewal. taken: within the last second or so, minute: within the last minute; of
-- what is longer ago half is forgotten.
function in_flight.take(x, count)
  for name, lasts in pairs({ taken = REMEMBERED_US, minute = MINUTE_US }) do
    local from = x[name .. '_from']
    if x.now - from > lasts then
      x[name], from = x[name] / 2, math.max(x.now - lasts, (x.now + from) / 2)
    end
    if x[name] < 0.5 then x[name], from = 0, x.now end
    x[name], x[name .. '_from'] = x[name] + count, from
    redis.call('HSET', x.key, name, x[name], name .. '_from', string.format('%.0f', from))
  end
end

function in_flight.taken_per_s(x) -- lately; never from a shorter time than half a second, for servers take bursts
  return x.taken * 1000000 / math.max(500000, x.now - x.taken_from)
end

-- For people: what was learned, in a field in_flight:SCOPE of the limiter's meta hash, as "calls at once, us of when it was
-- learned, why".
local function tell(x)
  local field = 'in_flight' .. string.match(x.key, '}:permits(.*):meta$')
  if x.top == 0 or x.most > FORGOTTEN * x.top then
    redis.call('HDEL', x.told, field)
  else
    redis.call('HSET', x.told, field, string.format('%.0f %.0f %s', x.most, x.learned_at, x.why))
  end
end

local function set(x, mode, most)
  if most > x.most and x.count >= x.most then x.sure = x.most end -- a whole round was answered
  x.before, x.mode, x.most, x.since = x.most, mode, math.max(1, math.floor(most)), x.now
  x.count, x.sum, x.squares = 0, 0, 0
  if x.mode == 'hold' then x.before = x.most end
  if x.mode == 'hold' and x.learned_at == 0 then x.learned_at, x.is_new = x.now, true end
  in_flight.write(x)
  tell(x)
end

function in_flight.fill(x, full) -- whether as many calls are in flight as may be
  x.full = full and 1 or 0
  if x.mode ~= 'hold' then x.since = x.now end
  in_flight.write(x)
end

function in_flight.begin(x)
  x.top, x.wait, x.base, x.error, x.sure, x.learned_at, x.why = 0, WAIT_US, 0, 0, 0, 0, ''
  set(x, 'start', FIRST)
end

local function latency(x) -- of this level: the mean and its relative error
  local mean = x.sum / x.count
  local spread = math.sqrt(math.max(0, x.squares / x.count - mean * mean)) / mean
  return mean, spread / math.sqrt(x.count)
end

local function judged(x) -- whether this level is slower than the best one; nil while that cannot be told
  local mean, error = latency(x)
  local enough = x.count >= math.max(SAMPLES, ROUNDS * x.before)
  if x.base == 0 or mean * (1 + error) < x.base then
    local sure = error < CERTAIN and x.count >= FIRST or error < DOUBTFUL and x.count >= SAMPLES
    if sure or x.base == 0 and enough then
      x.base, x.error = mean, error
    elseif x.base == 0 then
      return nil
    end
    return false, mean
  end
  local ratio = mean / math.max(x.base, FAST_US / SLOW)
  local doubt = ratio * math.sqrt(error * error + x.error * x.error)
  if ratio + doubt < SLOW then return false, mean end
  if ratio - doubt > SLOW or enough then return ratio >= SLOW, mean end
  return nil
end

local function back_off(x, mode, most, longest)
  x.wait = x.top > 0 and x.most <= NEAR * x.top and math.min(2 * x.wait, longest) or WAIT_US
  x.top = x.most
  set(x, mode, most)
end

local function too_slow(x, mean)
  -- Most of the calls that were answered had started among fewer: those of the level before.
  local useful = math.ceil(x.before * x.base / mean * SPARE)
  x.why, x.worst, x.among = 'slow', mean, x.before
  back_off(x, 'hold', x.mode == 'try' and x.before or math.min(x.most - 1, useful), SLOW_US)
end

-- As many calls are in flight as may be. count, sum, squares: latencies (us) of calls answered since the last renewal.
function in_flight.raise(x, count, sum, squares)
  x.count, x.sum, x.squares = x.count + count, x.sum + sum, x.squares + squares
  local lasted = x.now - x.since
  local answered = x.count >= math.max(1, x.before) and lasted >= LEVEL_US
  if x.mode == 'hold' then
    if lasted < x.wait or not answered then return in_flight.write(x) end
    local slow, mean = judged(x)
    local in_vain = x.most <= FEWER * x.among and mean >= STEADY * x.worst -- fewer calls in flight made it no faster
    if slow and not in_vain then
      too_slow(x, mean)
    else
      if slow then x.base = mean end
      set(x, 'try', x.most + math.max(1, TRY * x.most))
    end
  elseif answered then
    local slow, mean = judged(x)
    if slow then
      too_slow(x, mean)
    elseif slow == nil then
      in_flight.write(x)
    elseif x.mode == 'try' and x.most <= x.top then
      set(x, 'try', x.most + math.max(1, TRY * x.most))
    else
      set(x, 'start', math.ceil(x.most * GROWTH))
    end
  elseif x.mode == 'start' and lasted >= ROUND_US and x.count < x.before then
    set(x, 'start', math.ceil(x.most * GROWTH))
  else
    in_flight.write(x)
  end
end

function in_flight.lower(x, taken) -- the API refused a call while it had taken so many others of ours
  x.why = 'refused'
  if taken < 1 then
    x.top, x.wait = 0, WAIT_US
    set(x, 'start', 1)
  else
    if x.mode ~= 'hold' then x.sure = math.max(x.sure, x.before) end -- servers refuse sooner than a level lasts
    if x.sure >= x.most then x.sure = 0 end
    back_off(x, 'hold', math.max(math.min(x.most, taken), x.sure), REFUSED_US)
  end
end
