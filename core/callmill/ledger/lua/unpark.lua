-- Queues chunks that were held back; the caller publishes their hints and calls again until none is left.
-- KEYS  BATCH_KEYS, DUE
-- ARGV  1 at most how many  2 prefix of the queued keys
-- Returns the members that are queued now; none while the batch is paused or cancelled.
-- The queued keys follow from the members' API, so they cannot be declared; Redis Cluster is not supported.
if control() ~= 'run' then return {} end
local members = redis.call('ZRANGE', PARKED, 0, tonumber(ARGV[1]) - 1)
for _, member in ipairs(members) do
  local number, api = string.match(member, '^[^/]*/(%d+)/(.*)$')
  local s = read_state(number)
  if s then
    s.status = 'Q'
    write_state(number, s)
  end
  redis.call('ZREM', PARKED, member)
  redis.call('ZADD', ARGV[2] .. api, int(now_ms), member)
end
return members
