-- Bring back what one worker was granted of the quotas, after Redis lost its state.
--
-- KEYS  1 meta hash   2.. one hash per quota
-- ARGV  1 boot id of the new life   2.. for each grant: index of the quota (from 1), us since its start, units
-- Returns 1 | 0: that life is over already, nothing is counted.
--
-- Invariant: called once by each worker for each life, before it is granted a start in it; so no window counts less than the
-- workers that survive have started in it.
if redis.call('HGET', M, 'boot') ~= ARGV[1] then return 0 end
for at = 2, #ARGV, 3 do
  local key, units = KEYS[tonumber(ARGV[at]) + 1], tonumber(ARGV[at + 2])
  local h = redis.call('HMGET', key, 'window', 'oldest', 'newest')
  local bucket = math.floor((now - tonumber(ARGV[at + 1])) / (tonumber(h[1]) / 96))
  local oldest, newest = tonumber(h[2] or 0), tonumber(h[3] or 0)
  redis.call('HINCRBY', key, bucket, units)
  redis.call('HINCRBY', key, 'total', units)
  redis.call('HSET', key, 'oldest', oldest == 0 and bucket or math.min(oldest, bucket), 'newest', math.max(newest, bucket))
  redis.call('EXPIRE', key, math.ceil(2 * tonumber(h[1]) / 1000000))
end
return 1
