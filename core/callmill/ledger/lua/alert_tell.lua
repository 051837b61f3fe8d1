-- Changes the state of one condition, or takes note that the end of a batch was told; with it goes what is to be told.
-- KEYS  1 ALERT_STATES  2 ALERTS  3 ENDED
-- ARGV  1 field of the state ('' = none)  2 what it was ('' = absent)  3 what it is now ('' = absent)
--       4 batch that ended ('' = none)  5 what is to be told (JSON; '' = nothing)  6 entries that the stream keeps
-- Returns 1 | 0: another worker was first, nothing changed
-- Invariant: a change is told if and only if it is made, so that workers which watch at the same time tell it once. A
-- Redis that is full takes it, too: it says why nothing happens.
if ARGV[4] == '' then
  redis.call('ZREM', KEYS[3], '')  -- removes nothing; after a removal, what takes memory is not refused
elseif redis.call('ZREM', KEYS[3], ARGV[4]) == 0 then
  return 0
end
if ARGV[1] ~= '' then
  if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
  if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
end
if ARGV[5] ~= '' then redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[6], '*', 'e', ARGV[5]) end
return 1
