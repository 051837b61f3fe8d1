-- Forgets lines in which nothing was queued for long and nothing waits.
-- KEYS  LINES   ARG  unused_for_ms  limit: at most how many  queued: prefix of the queued keys
-- Returns how many are forgotten
-- Invariant: a line with a queued chunk is in LINES; one that is used again is put back by what queues its chunk.
-- The queued keys follow from the lines, so they cannot be declared; Redis Cluster is not supported.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local before = string.format('%.0f', now - ARG.unused_for_ms)
local forgotten = 0
for _, line in ipairs(redis.call('ZRANGEBYSCORE', LINES, '-inf', before, 'LIMIT', 0, ARG.limit)) do
  if redis.call('EXISTS', ARG.queued .. line) == 1 then
    redis.call('ZADD', LINES, string.format('%.0f', now), line)
  else
    redis.call('ZREM', LINES, line)
    forgotten = forgotten + 1
  end
end
return forgotten
