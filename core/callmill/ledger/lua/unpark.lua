-- Queues chunks that were held back; the caller publishes their hints and calls again until none is left.
-- KEYS  SHARED
-- ARGV  1 batch id  2 at most how many  3 prefix of the queued keys
-- Returns the members that are queued now; none while the batch is paused, cancelled, held back until its seal,
-- or full of unread outcomes.
-- Invariant: a batch that may run stays in RESUMED while chunks of it are parked, so that any worker can go on here.
-- The queued keys follow from the members' lines, so they cannot be declared; Redis Cluster is not supported.
though_full()
local m = redis.call('HMGET', META, 'control', 'phase', 'held', 'full')
local members = {}
if m[1] == 'run' and not m[4] and (m[2] == 'sealed' or not m[3]) then
  members = redis.call('ZRANGE', PARKED, 0, tonumber(ARGV[2]) - 1)
end
for i, member in ipairs(members) do
  local number = string.match(member, '^[^/]*/(%d+)/')
  local s = read_state(number)
  if s then
    s.status = 'Q'
    write_state(number, s)
  end
  redis.call('ZREM', PARKED, member)
  members[i] = bound_member(member)
  enqueue(ARGV[3] .. line_of(members[i]), members[i])
end
if #members == 0 or redis.call('EXISTS', PARKED) == 0 then redis.call('SREM', RESUMED, ARGV[1]) end
return members
