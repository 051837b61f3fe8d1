-- Lists queued chunks that have waited longer than a hint takes, and marks them as seen now.
-- KEYS  QUEUED of a line   ARG  older_than_ms  limit: at most how many
-- Returns members, the oldest first
-- Invariant: a chunk is listed at most once per that time, so hints are not published in a storm.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local before = string.format('%.0f', now - ARG.older_than_ms)
local members = redis.call('ZRANGEBYSCORE', QUEUED, '-inf', before, 'LIMIT', 0, ARG.limit)
for _, member in ipairs(members) do redis.call('ZADD', QUEUED, string.format('%.0f', now), member) end
return members
