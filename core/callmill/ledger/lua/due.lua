-- Lists chunks that somebody must look at: lease ended, or due.
-- KEYS  1 DUE   ARGV  1 at most how many
-- Returns members, the longest due first
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
