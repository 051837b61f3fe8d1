-- Queues the failed jobs of a finished chunk again.
-- KEYS  SHARED, queued(line)
-- ARGV  1 chunk number  2 member
-- Returns the number of jobs that run again
-- Invariant: a chunk is taken back once; counters fall by exactly what is queued again.
local number, member = ARGV[1], ARGV[2]
local s = read_state(number)
if not s or s.status ~= 'D' or control() == 'cancelled' then return 0 end
local failed = redis.call('HGET', FAILED, number)
local bytes = {}
for i = 1, math.ceil(s.count / 8) do
  local all = i * 8 <= s.count and 255 or bit.lshift(1, s.count % 8) - 1
  bytes[i] = string.char(bit.band(all, bit.bnot(string.byte(failed, i))))
end
redis.call('HSET', DONE, number, table.concat(bytes))
redis.call('HDEL', FAILED, number)
local again = s.failed
redis.call('HINCRBY', META, 'failed', -again)
redis.call('HDEL', META, 'ended_ms')
for i = 1, BATCH_KEYS do redis.call('PERSIST', KEYS[i]) end
s.done, s.failed = s.done - again, 0
put_back(number, s, member, KEYS[OWN])
return again
