-- Bring back what one worker was granted of the quotas, after Redis lost its state.
--
-- KEYS  META   QUOTAS: one hash per quota
-- ARG   boot: id of the new life   grants, each: quota: its place in QUOTAS   age_us: since its start   units
-- Returns 1 | 0: that life is over already, nothing is counted.
--
-- Invariant: called once by each worker for each life, before it is granted a start in it; so no window counts less than the
-- workers that survive have started in it.
if redis.call('HGET', META, 'boot') ~= ARG.boot then return 0 end
for _, grant in ipairs(ARG.grants) do
  local key = QUOTAS[grant.quota]
  local h = read_quota(key)
  local bucket = math.floor((now - grant.age_us) / (tonumber(h.window) / 96))
  local oldest, newest = tonumber(h.oldest or 0), tonumber(h.newest or 0)
  redis.call('HINCRBY', key, bucket, grant.units)
  redis.call('HINCRBY', key, 'total', grant.units)
  redis.call('HSET', key, 'oldest', oldest == 0 and bucket or math.min(oldest, bucket), 'newest', math.max(newest, bucket))
  redis.call('EXPIRE', key, math.ceil(2 * tonumber(h.window) / 1000000))
end
return 1
