-- Extends the leases that a worker still holds.
-- KEYS  1 DUE  then per lease: state key, meta key of its batch
-- ARGV  1 lease (ms)  then per lease: chunk number, member, fence
-- Returns per lease: 1 renewed | 0 lost: another worker holds the chunk, or it is over | 2 renewed, but the batch is
--         paused, cancelled, full of unread outcomes, or bound to another API of that name: start no further calls
-- Invariant: only the holder of the current fence moves the lease's end.
local time = redis.call('TIME')
local ends = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1]))
local answer = {}
for i = 1, (#KEYS - 1) / 2 do
  local number, member, fence = ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1]
  local text = redis.call('HGET', KEYS[2 * i], number) or ''
  if string.match(text, '^(%d+)|L|') ~= fence then
    answer[i] = 0
  else
    redis.call('ZREM', KEYS[1], '')  -- removes nothing; after it, a Redis that is full lets the lease be moved
    redis.call('ZADD', KEYS[1], ends, member)
    local _, api, _, identity = parts_of(member)
    local m = redis.call('HMGET', KEYS[2 * i + 1], 'control', 'full', 'api:' .. api)
    local bound = bound_identity(m[3])
    local elsewhere = bound ~= '' and bound ~= identity
    answer[i] = m[1] == 'run' and not m[2] and not elsewhere and 1 or 2
  end
end
return answer
