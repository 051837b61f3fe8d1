-- Forgets lines in which nothing was queued for long and nothing waits.
-- KEYS  1 LINES   ARGV  1 not used for (ms)  2 at most how many  3 prefix of the queued keys
-- Returns how many are forgotten
-- Invariant: a line with a queued chunk is in LINES; one that is used again is put back by what queues its chunk.
-- The queued keys follow from the lines, so they cannot be declared; Redis Cluster is not supported.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local before = string.format('%.0f', now - tonumber(ARGV[1]))
local forgotten = 0
for _, line in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before, 'LIMIT', 0, ARGV[2])) do
  if redis.call('EXISTS', ARGV[3] .. line) == 1 then
    redis.call('ZADD', KEYS[1], string.format('%.0f', now), line)
  else
    redis.call('ZREM', KEYS[1], line)
    forgotten = forgotten + 1
  end
end
return forgotten
