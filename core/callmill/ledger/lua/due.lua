-- Lists chunks that somebody must look at: lease ended, or due.
-- KEYS  DUE   ARG  limit: at most how many  after: how many others
-- Returns members, the longest due first
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
return redis.call('ZRANGEBYSCORE', DUE, '-inf', now, 'LIMIT', ARG.after, ARG.limit)
