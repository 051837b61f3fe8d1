-- Moves chunks that are queued, or due some time, to the line that follows from what their batch is bound to now.
-- KEYS  SHARED, MOVING
-- ARG   queued: prefix of the queued keys  since_us: score that the batch had in MOVING when its chunks were looked for,
--       where these are the last of them; nil = more follow  members
-- Returns the members that are queued in another line now: publish their hints; none of a batch that was cancelled
-- Invariants: a chunk is queued in one line only; the same call twice moves nothing. A batch leaves MOVING only if it was
-- not bound anew since its chunks were looked for.
-- The queued keys follow from the members' lines, so they cannot be declared; Redis Cluster is not supported.
though_full()
local moved = {}
for _, member in ipairs(control() ~= 'cancelled' and ARG.members or {}) do
  local bound = bound_member(member)
  local s = bound ~= member and read_state(string.match(member, '^[^/]*/(%d+)/'))
  local since = s and redis.call('ZSCORE', ARG.queued .. line_of(member), member)
  if since then redis.call('ZREM', ARG.queued .. line_of(member), member) end
  if since and s.status == 'Q' then
    redis.call('ZADD', ARG.queued .. line_of(bound), since, bound)
    redis.call('ZADD', LINES, int(now_ms), line_of(bound))
    moved[#moved + 1] = bound
  end
  local due = s and s.status ~= 'L' and redis.call('ZSCORE', DUE, member)
  if due then
    redis.call('ZREM', DUE, member)
    redis.call('ZADD', DUE, due, bound)
  end
end
if ARG.since_us and tonumber(redis.call('ZSCORE', MOVING, batch_id())) == ARG.since_us then
  redis.call('ZREM', MOVING, batch_id())
end
return moved
