-- Grant start times for the next calls of one worker, all-or-nothing over every limit of the API; settle token costs.
--
-- KEYS  1 meta hash   2 zset of workers seen lately   3 zset of workers that wait (FIFO)   4.. one hash per limit
-- ARGV  1 worker   2 boot id it knows ('' none)   3 seq it knows   4 us from now to the latest start it was granted
--       5 lead us: no start sooner than this   6 guard us it needs   7 tokens used beyond what was reserved
--       8 tokens reserved and not used   9 slots that passed without a call   10 us from now to the earliest start that
--       8 and 9 belong to   11 channel   12 horizon us   13 longest cold wait us   14 n: calls that wait (0: only settle
--       and look)   15.. tokens of each of the n calls; absent where no limit counts tokens
-- Returns {now, boot, seq, us until it may ask again, index of the limit that holds it back or 0, us of pause left,
--          pause reason, guard in force us, offsets of the granted starts from now ...}; {'unconfigured'} where a limit is unknown.
--
-- A limit is a pace (its hash shows when the next start is due: tat) or a quota (its hash counts what was granted, in
-- buckets of window / 96: field = number of the bucket, value = units of the starts that lie in it; and their total).
--
-- Invariants: starts never decrease; two starts are at least (cost of the earlier) x (emission) apart on every pace, but for
-- refunds; no window of a quota, and guard, holds starts of more units than its amount, but for what calls cost beyond what
-- was reserved; nothing is charged unless a start is granted; after lost or regressed state the first start is a cold wait away.
-- All times are microseconds of a clock that follows Redis TIME and never goes back; '%.2f' because tostring keeps 14 digits.
local M, ACTIVE, QUEUE, me = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local lead, horizon, n = tonumber(ARGV[5]), tonumber(ARGV[12]), tonumber(ARGV[14])
local function text(x) return string.format('%.2f', x) end
local function cost(x, k) return x.tokens and tonumber(ARGV[14 + k] or 1) or 1 end

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

-- A bucket counts until no call that started in it can share a window with a later one.
local function ends(x, bucket) return (bucket + 1) * x.width + x.window + force end

local function load(x) -- read the buckets and drop the old ones; few exchanges need to, for the sum is kept
  if x.used then return end
  x.used, x.order, x.over = {}, {}, {}
  local function add(bucket, units)
    if not x.used[bucket] then x.order[#x.order + 1] = bucket end
    x.used[bucket] = (x.used[bucket] or 0) + units
  end
  local all = redis.call('HGETALL', x.key)
  for j = 1, #all, 2 do
    local bucket = tonumber(all[j])
    if bucket and ends(x, bucket) <= now then
      x.over[#x.over + 1] = bucket
    elseif bucket then
      add(bucket, tonumber(all[j + 1]))
    end
  end
  for bucket, units in pairs(x.added) do add(bucket, units) end
  table.sort(x.order)
  x.total, x.oldest, x.newest = 0, x.order[1] or 0, x.order[#x.order] or 0
  for _, units in pairs(x.used) do x.total = x.total + units end
end

local function room_at(x, units) -- when enough has aged out; a call dearer than the quota waits until nothing is left
  local over, at = x.total + math.min(math.max(units, 1), x.amount) - x.amount, 0
  if over <= 0 then return at end
  load(x)
  for _, bucket in ipairs(x.order) do
    if over <= 0 then break end
    over, at = over - x.used[bucket], ends(x, bucket)
  end
  return at
end

local function spend(x, at, units) -- never before the newest bucket: later is safe, and keeps the order
  local bucket = math.max(math.floor(at / x.width), x.newest)
  if x.used then
    if not x.used[bucket] then x.order[#x.order + 1] = bucket end
    x.used[bucket] = (x.used[bucket] or 0) + units
  end
  x.added[bucket] = (x.added[bucket] or 0) + units
  x.total, x.newest = x.total + units, bucket
  if x.oldest == 0 then x.oldest = bucket end
end

local function give_back(x, at, units) -- to the bucket of the start, or to older ones: what a newer one counts is needed longer
  load(x)
  for j = #x.order, 1, -1 do
    local bucket = x.order[j]
    if units <= 0 then break end
    if bucket <= at / x.width then
      local part = math.min(units, x.used[bucket])
      units, x.total, x.used[bucket] = units - part, x.total - part, x.used[bucket] - part
      x.added[bucket] = (x.added[bucket] or 0) - part
    end
  end
end

local function write_quota(x)
  if x.over and #x.over > 0 then redis.call('HDEL', x.key, unpack(x.over)) end
  if not x.used and not next(x.added) then return end
  for bucket, units in pairs(x.added) do redis.call('HINCRBY', x.key, bucket, units) end
  redis.call('HSET', x.key, 'total', x.total, 'oldest', x.oldest, 'newest', x.newest)
  redis.call('EXPIRE', x.key, math.ceil(2 * x.window / 1000000))
end

local limits, paces, quotas, spacing = {}, {}, {}, 1 -- spacing: what the first call needs on its dearest pace
for i = 1, #KEYS - 3 do
  local h = redis.call('HMGET', KEYS[i + 3], 'window', 'amount', 'gain', 'slack', 'tokens', 'quota', 'tat', 'credit',
    'total', 'oldest', 'newest')
  if not h[1] then return { 'unconfigured' } end
  local x = { key = KEYS[i + 3], window = tonumber(h[1]), amount = tonumber(h[2]), tokens = h[5] == '1', quota = h[6] == '1' }
  limits[i] = x
  if x.quota then
    quotas[#quotas + 1] = x
    x.width, x.added = x.window / 96, {} -- added: what this exchange changes, by bucket
    x.total, x.oldest, x.newest = tonumber(h[9] or 0), tonumber(h[10] or 0), tonumber(h[11] or 0)
    if x.oldest > 0 and ends(x, x.oldest) <= now then load(x) end
  else
    paces[#paces + 1] = x
    x.tat, x.credit = tonumber(h[7] or 0), tonumber(h[8] or 0)
    x.emission = (x.window + tonumber(h[3]) * math.max(0, force - tonumber(h[4]))) / x.amount
    if x.tat < now then -- idle time is no credit, and it eats the credit of refunds
      x.credit, x.tat = math.max(0, x.credit - (now - x.tat)), now
    end
    spacing = math.max(spacing, x.emission * cost(x, 1))
  end
end
local H = math.max(horizon, 1.5 * spacing) -- shorter than one emission, it would leave the limit unused

-- Lost or regressed state: nobody knows what was granted, so wait until survivors have told and old slots are over.
if not boot or (ARGV[2] == boot and seq < tonumber(ARGV[3])) then
  boot, seq = text(now) .. '/' .. me .. '/' .. ARGV[3], math.max(seq, tonumber(ARGV[3]))
  floor = math.max(floor, now + math.max(lead, math.min(2 * H + spacing, tonumber(ARGV[13]))))
  redis.call('PUBLISH', ARGV[11], 'boot')
end
if ARGV[2] ~= '' and ARGV[2] ~= boot then -- a survivor of the former life brings what it still holds
  local latest = now + tonumber(ARGV[4])
  last = math.max(last, latest)
  for _, x in ipairs(paces) do x.tat = math.max(x.tat, latest + x.emission * cost(x, 1)) end
end

local dearer, unused, unfired = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local settle = dearer - unused
for _, x in ipairs(paces) do
  if x.tokens and settle ~= 0 then -- refunds pay for later calls; the bank is bounded, for windows do not forget
    x.credit = x.credit - settle * x.emission
    if x.credit < 0 then x.tat, x.credit = x.tat - x.credit, 0 end
    x.credit = math.min(x.credit, x.window / 20)
  end
end
for _, x in ipairs(quotas) do
  local back = x.tokens and unused or unfired
  -- What was granted in a former life is not counted in this one. The guard covers the error of the worker's clock map.
  if back > 0 and ARGV[2] == boot then give_back(x, now + tonumber(ARGV[10]) - force, back) end
  if x.tokens and dearer > 0 then spend(x, now, dearer) end
end

local pause, starts, by, again = field(7), {}, 0, now
local function next_start(k)
  local s = math.max(now + lead, floor, last)
  by = 0
  for i, x in ipairs(limits) do
    local due = x.quota and room_at(x, cost(x, k)) or x.tat
    if due > s then s, by = due, i end
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

  local s = next_start(1)
  if s - now > reach then
    again = math.max(now + 1000, s + rank * turn - H)
    redis.call('ZADD', QUEUE, 'NX', now, me)
    redis.call('HSET', M, 'promise:' .. me, text(again))
  else
    for k = 1, math.min(n, fair) do -- a turn is granted whole; cutting it at the horizon would favour small askers
      if k > 1 and s - now > reach + horizon then break end
      starts[k] = s
      last = s
      for _, x in ipairs(quotas) do spend(x, s, cost(x, k)) end
      for _, x in ipairs(paces) do
        local charge = math.ceil(x.emission * cost(x, k) * 4) / 4
        local paid = math.min(x.credit, charge)
        x.credit = x.credit - paid
        x.tat = math.max(x.tat, s) + charge - paid
      end
      s = next_start(k + 1)
    end
    if redis.call('ZREM', QUEUE, me) == 1 then redis.call('HDEL', M, 'promise:' .. me) end
    again = math.max(now, s - H + math.min((active - 1) * turn, H / 2))
  end
  -- Refunds and new numbers may free a quota hours sooner than it ages.
  if by > 0 and limits[by].quota then again = math.min(again, now + 5000000) end
end

seq = seq + 1
redis.call('HSET', M, 'now', text(now), 'skew', text(skew), 'boot', boot, 'seq', seq, 'floor', text(floor),
  'last', text(last), 'guard', text(guard), 'guard_before', text(before), 'guard_since', text(since))
for _, x in ipairs(paces) do
  redis.call('HSET', x.key, 'tat', text(x.tat), 'credit', text(x.credit), 'emission', text(x.emission))
end
for _, x in ipairs(quotas) do write_quota(x) end
local reply = { now, boot, seq, math.ceil(again - now), by, math.ceil(math.max(0, pause - now)), meta[8] or '', math.ceil(force) }
for _, s in ipairs(starts) do reply[#reply + 1] = math.ceil(s - now) end
return reply
