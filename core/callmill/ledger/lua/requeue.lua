-- Puts a chunk back whose lease has ended or whose due time has come.
-- KEYS  SHARED, queued(line)
-- ARGV  1 chunk number  2 member
-- Returns 1: queued now, publish its hint | 0: nothing to do
-- Invariant: a chunk whose lease still runs is left alone.
local number, member = ARGV[1], ARGV[2]
local due = tonumber(redis.call('ZSCORE', DUE, member))
if not due or due > now_ms then return 0 end
local s = read_state(number)
if not s or (s.status ~= 'L' and s.status ~= 'W') then
  redis.call('ZREM', DUE, member)
  return 0
end
though_full()
if s.status == 'L' then
  redis.call('HINCRBY', META, 'leased', -1)
  note_death(number, s)
end
local queued = put_back(number, s, member, KEYS[OWN])
end_if_over()
return queued
