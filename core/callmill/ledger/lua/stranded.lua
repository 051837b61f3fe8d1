-- Lists queued chunks that have waited longer than a hint takes, and marks them as seen now.
-- KEYS  1 queued(line)   ARGV  1 older than (ms)  2 at most how many
-- Returns members, the oldest first
-- Invariant: a chunk is listed at most once per that time, so hints are not published in a storm.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local before = string.format('%.0f', now - tonumber(ARGV[1]))
local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before, 'LIMIT', 0, ARGV[2])
for _, member in ipairs(members) do redis.call('ZADD', KEYS[1], string.format('%.0f', now), member) end
return members
