-- Notes what a worker process does, and adds what it counted since its last report.
-- KEYS  STATUS of it  WORKERS  REPORTED  RECONCILED  APIS: for each, total and minutes
-- ARG   status (JSON)  status_ttl_ms: forgotten after  worker: its id  number of the counts  number_ttl_ms: how long it is kept
--       api_ttl_ms: an API's counts are kept so long after its last report  reconciled: what the reconciler did
--       apis: the counts of each API, name -> what it grew by: calls, r:<result>, succeeded, failed, retries, throttled,
--       tokens, latency_us, l:<bucket>, wait_us, w:<bucket>
-- Returns nothing
-- Invariants: a Redis that is full takes it, too: it says why nothing happens. Counts of one number are added once, to
-- what was ever counted and to the minute of now, however often they come.
local MINUTES = 64
local time = redis.call('TIME')
local minute = math.floor(time[1] / 60)
redis.call('ZREM', WORKERS, '')  -- removes nothing; after a removal, what takes memory is not refused
redis.call('SET', STATUS, ARG.status, 'PX', ARG.status_ttl_ms)
redis.call('ZADD', WORKERS, string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), ARG.worker)
if tonumber(redis.call('GET', REPORTED) or 0) >= ARG.number then return end
redis.call('SET', REPORTED, ARG.number, 'PX', ARG.number_ttl_ms)

local function add(key, counts)
  for name, more in pairs(counts) do redis.call('HINCRBY', key, name, more) end
end

add(RECONCILED, ARG.reconciled)
for i, counts in ipairs(ARG.apis) do
  local api = APIS[i]
  add(api.total, counts)
  local packed = redis.call('HGET', api.minutes, minute % MINUTES)
  local sums = packed and cmsgpack.unpack(packed)
  if not sums or sums.at ~= minute then sums = {at = minute} end
  for name, more in pairs(counts) do sums[name] = (sums[name] or 0) + more end
  redis.call('HSET', api.minutes, minute % MINUTES, cmsgpack.pack(sums))
  redis.call('PEXPIRE', api.total, ARG.api_ttl_ms)
  redis.call('PEXPIRE', api.minutes, ARG.api_ttl_ms)
end
