-- Grant start times for the next calls of one worker, all-or-nothing over every limit of the API; settle token costs.
--
-- KEYS  1 meta hash   2 zset of workers seen lately   3 zset of workers that wait (FIFO)   4.. one hash per limit
-- ARGV  1 worker   2 boot id it knows ('' none)   3 seq it knows   4 us from now to the latest start it was granted
--       5 lead us: no start sooner than this   6 guard us it needs   7 tokens to settle (actual - reserved; < 0 refunds)
--       8 channel   9 horizon us   10 longest cold wait us   11 n: calls that wait (0: only settle and look)
--       12.. tokens of each of the n calls; absent where no limit counts tokens
-- Returns {now, boot, seq, us until it may ask again, index of the limit that holds it back or 0, us of pause left,
--          pause reason, guard in force us, offsets of the granted starts from now ...}; {'unconfigured'} where a limit is unknown.
--
-- Invariants: starts never decrease; two starts are at least (cost of the earlier) x (emission) apart on every limit, but for
-- refunds; nothing is charged unless a start is granted; after lost or regressed state the first start is a cold wait away.
-- All times are microseconds of a clock that follows Redis TIME and never goes back; '%.2f' because tostring keeps 14 digits.
local M, ACTIVE, QUEUE, me = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local lead, horizon, n = tonumber(ARGV[5]), tonumber(ARGV[9]), tonumber(ARGV[11])
local function text(x) return string.format('%.2f', x) end

local meta = redis.call('HMGET', M, 'now', 'skew', 'boot', 'seq', 'floor', 'last', 'pause', 'reason',
  'guard', 'guard_before', 'guard_since')
local function field(i) return tonumber(meta[i] or 0) end
local time = redis.call('TIME')
local skew, boot, seq, floor, last = field(2), meta[3], field(4), field(5), field(6)
local now = time[1] * 1000000 + time[2] + skew
if now < field(1) then -- TIME went back: go on from where we were, rather than stall until it has caught up
  skew = skew + field(1) - now
  now = field(1)
end

-- The guard in force is the greatest that any worker asked for in the last 30 to 60 s.
local guard, before, since = field(9), field(10), field(11)
if now - since > 30000000 then
  before = (now - since > 60000000) and 0 or guard
  guard, since = 0, now
end
guard = math.max(guard, tonumber(ARGV[6]))
local force = math.max(guard, before)

local limits, spacing = {}, 1 -- spacing: what the first call needs on its dearest limit
for i = 1, #KEYS - 3 do
  local h = redis.call('HMGET', KEYS[i + 3], 'window', 'amount', 'gain', 'slack', 'tokens', 'tat', 'credit')
  if not h[1] then return { 'unconfigured' } end
  local x = { window = tonumber(h[1]), tokens = h[5] == '1', tat = tonumber(h[6] or 0), credit = tonumber(h[7] or 0) }
  x.emission = (x.window + tonumber(h[3]) * math.max(0, force - tonumber(h[4]))) / tonumber(h[2])
  if x.tat < now then -- idle time is no credit, and it eats the credit of refunds
    x.credit, x.tat = math.max(0, x.credit - (now - x.tat)), now
  end
  limits[i] = x
  spacing = math.max(spacing, x.emission * (x.tokens and tonumber(ARGV[12] or 1) or 1))
end
local H = math.max(horizon, 1.5 * spacing) -- shorter than one emission, it would leave the limit unused

-- Lost or regressed state: nobody knows what was granted, so wait until survivors have told and old slots are over.
if not boot or (ARGV[2] == boot and seq < tonumber(ARGV[3])) then
  boot, seq = text(now) .. '/' .. me .. '/' .. ARGV[3], math.max(seq, tonumber(ARGV[3]))
  floor = math.max(floor, now + math.max(lead, math.min(2 * H + spacing, tonumber(ARGV[10]))))
  redis.call('PUBLISH', ARGV[8], 'boot')
end
if ARGV[2] ~= '' and ARGV[2] ~= boot then -- a survivor of the former life brings what it still holds
  local latest = now + tonumber(ARGV[4])
  last = math.max(last, latest)
  for _, x in ipairs(limits) do
    x.tat = math.max(x.tat, latest + x.emission * (x.tokens and tonumber(ARGV[12] or 1) or 1))
  end
end

local settle = tonumber(ARGV[7])
for _, x in ipairs(limits) do
  if x.tokens and settle ~= 0 then -- refunds pay for later calls; the bank is bounded, for windows do not forget
    x.credit = x.credit - settle * x.emission
    if x.credit < 0 then x.tat, x.credit = x.tat - x.credit, 0 end
    x.credit = math.min(x.credit, x.window / 20)
  end
end

local pause, starts, by, again = field(7), {}, 0, now
local function next_start()
  local s = math.max(now + lead, floor, last)
  by = 0
  for i, x in ipairs(limits) do
    if x.tat > s then s, by = x.tat, i end
  end
  return math.max(s, pause)
end

if n > 0 then
  redis.call('ZADD', ACTIVE, now, me)
  redis.call('ZREMRANGEBYSCORE', ACTIVE, '-inf', now - 2000000)
  local active = redis.call('ZCARD', ACTIVE)
  local fair = math.min(128, math.max(1, math.floor(horizon / (spacing * active)))) -- calls in one turn of one worker
  local turn = fair * spacing
  for _ = 1, 3 do -- waiters that did not come at the time promised to them are dead or have nothing to do
    local head = redis.call('ZRANGE', QUEUE, 0, 0)[1]
    if not head or head == me then break end
    if now <= tonumber(redis.call('HGET', M, 'promise:' .. head) or 0) + 250000 then break end
    redis.call('ZREM', QUEUE, head)
    redis.call('HDEL', M, 'promise:' .. head)
  end
  local rank = redis.call('ZRANK', QUEUE, me) or redis.call('ZCARD', QUEUE)
  -- Older waiters book first: keep their turns free. The floor keeps it work conserving when they do not come.
  local reach = math.max(H - rank * turn, lead + 10000)

  local s = next_start()
  if s - now > reach then
    again = math.max(now + 1000, s + rank * turn - H)
    redis.call('ZADD', QUEUE, 'NX', now, me)
    redis.call('HSET', M, 'promise:' .. me, text(again))
  else
    for k = 1, math.min(n, fair) do -- a turn is granted whole; cutting it at the horizon would favour small askers
      if k > 1 and s - now > reach + horizon then break end
      starts[k] = s
      last = s
      for _, x in ipairs(limits) do
        local charge = math.ceil(x.emission * (x.tokens and tonumber(ARGV[11 + k]) or 1) * 4) / 4
        local paid = math.min(x.credit, charge)
        x.credit = x.credit - paid
        x.tat = math.max(x.tat, s) + charge - paid
      end
      s = next_start()
    end
    if redis.call('ZREM', QUEUE, me) == 1 then redis.call('HDEL', M, 'promise:' .. me) end
    again = math.max(now, s - H + math.min((active - 1) * turn, H / 2))
  end
end

seq = seq + 1
redis.call('HSET', M, 'now', text(now), 'skew', text(skew), 'boot', boot, 'seq', seq, 'floor', text(floor),
  'last', text(last), 'guard', text(guard), 'guard_before', text(before), 'guard_since', text(since))
for i, x in ipairs(limits) do
  redis.call('HSET', KEYS[i + 3], 'tat', text(x.tat), 'credit', text(x.credit), 'emission', text(x.emission))
end
local reply = { now, boot, seq, math.ceil(again - now), by, math.ceil(math.max(0, pause - now)), meta[8] or '', math.ceil(force) }
for _, s in ipairs(starts) do reply[#reply + 1] = math.ceil(s - now) end
return reply
