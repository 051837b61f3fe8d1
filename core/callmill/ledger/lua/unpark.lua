-- Queues chunks that were held back; the caller publishes their hints and calls again until none is left.
-- KEYS  SHARED
-- ARG   batch_id  limit: at most how many  queued: prefix of the queued keys
-- Returns the members that are queued now; none while the batch is paused, cancelled, held back until its seal,
-- or full of unread outcomes.
-- Invariant: a batch that may run stays in RESUMED while chunks of it are parked, so that any worker can go on here.
-- The queued keys follow from the members' lines, so they cannot be declared; Redis Cluster is not supported.
though_full()
local m = read_held(META)
local members = {}
if m.control == 'run' and not m.full and (m.phase == 'sealed' or not m.held) then
  members = redis.call('ZRANGE', PARKED, 0, ARG.limit - 1)
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
  enqueue(ARG.queued .. line_of(members[i]), members[i])
end
if #members == 0 or redis.call('EXISTS', PARKED) == 0 then redis.call('SREM', RESUMED, ARG.batch_id) end
return members
