-- Notes what a worker process does, and adds what it counted since its last report.
-- KEYS  1 its status  2 WORKERS  3 REPORTED  4 RECONCILED  then of each API: total, minutes
-- ARGV  1 the status (JSON)  2 forgotten after (ms)  3 worker id  4 number of the counts  5 how long it is kept (ms)
--       6 an API's counts are kept so long after its last report (ms)  7 what the reconciler did, then the counts of each
--       API (msgpack: name -> what it grew by): calls, r:<result>, succeeded, failed, retries, throttled, tokens,
--       latency_us, l:<bucket>, wait_us, w:<bucket>
-- Returns nothing
-- Invariants: a Redis that is full takes it, too: it says why nothing happens. Counts of one number are added once, to
-- what was ever counted and to the minute of now, however often they come.
local MINUTES = 64
local time = redis.call('TIME')
local minute = math.floor(time[1] / 60)
redis.call('ZREM', KEYS[2], '')  -- removes nothing; after a removal, what takes memory is not refused
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), ARGV[3])
if tonumber(redis.call('GET', KEYS[3]) or 0) >= tonumber(ARGV[4]) then return end
redis.call('SET', KEYS[3], ARGV[4], 'PX', ARGV[5])

local function add(key, counts)
  for name, more in pairs(counts) do redis.call('HINCRBY', key, name, more) end
end

add(KEYS[4], cmsgpack.unpack(ARGV[7]))
for i = 5, #KEYS, 2 do
  local counts = cmsgpack.unpack(ARGV[8 + (i - 5) / 2])
  add(KEYS[i], counts)
  local packed = redis.call('HGET', KEYS[i + 1], minute % MINUTES)
  local sums = packed and cmsgpack.unpack(packed)
  if not sums or sums.at ~= minute then sums = {at = minute} end
  for name, more in pairs(counts) do sums[name] = (sums[name] or 0) + more end
  redis.call('HSET', KEYS[i + 1], minute % MINUTES, cmsgpack.pack(sums))
  redis.call('PEXPIRE', KEYS[i], ARGV[6])
  redis.call('PEXPIRE', KEYS[i + 1], ARGV[6])
end
