-- Lists chunks that somebody must look at: lease ended, or due.
-- KEYS  1 DUE   ARGV  1 at most how many  2 after how many others
-- Returns members, the longest due first
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', ARGV[2], ARGV[1])
