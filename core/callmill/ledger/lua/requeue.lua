-- Puts a chunk back whose lease has ended or whose due time has come, and looks after it until somebody takes it.
-- KEYS  SHARED, QUEUED of its line
-- ARG   number of the chunk  member
-- Returns 1: queued now, publish its hint | 2: still queued, publish it again | 0: nothing to do
-- Invariant: a chunk whose lease still runs is left alone. One that was put back stays in DUE until it is claimed: its
-- hint may be lost with a worker that dies, too, while those of the backlog are not. It is published again after the
-- time that it has waited, so 2 s, then 4, 8, ... after it was put back.
local WATCH_MS = 2000
local number, member = ARG.number, ARG.member
local due = tonumber(redis.call('ZSCORE', DUE, member))
if not due or due > now_ms then return 0 end
local bound = bound_member(member)
if bound ~= member and redis.call('ZSCORE', DUE, bound) then  -- claimed, or queued, in another line since then
  redis.call('ZREM', DUE, member)
  return 0
end
local s = read_state(number)
local since = s and s.status == 'Q' and tonumber(redis.call('ZSCORE', QUEUED, member))
if since then
  local waited = now_ms - since
  though_full()
  redis.call('ZADD', DUE, int(now_ms + (waited < WATCH_MS and WATCH_MS - waited or waited)), member)
  return waited < WATCH_MS and 0 or 2  -- waited too little: a worker has its hint in hand
end
if not s or (s.status ~= 'L' and s.status ~= 'W') then
  redis.call('ZREM', DUE, member)
  return 0
end
though_full()
if s.status == 'L' then
  redis.call('HINCRBY', META, 'leased', -1)
  note_death(number, s)
end
local queued = put_back(number, s, member, QUEUED)
if s.status == 'Q' then redis.call('ZADD', DUE, int(now_ms + WATCH_MS), bound) end
end_if_over()
return queued
