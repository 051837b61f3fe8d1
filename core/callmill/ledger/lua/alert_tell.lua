-- Changes the state of one condition, or takes note that the end of a batch was told; with it goes what is to be told.
-- KEYS  STATES  ALERTS  ENDED
-- ARG   field of the state ('' = none)  before: what it was ('' = absent)  after: what it is now ('' = absent)
--       batch_id: batch that ended ('' = none)  alert: what is to be told (JSON; '' = nothing)  kept: entries of the stream
-- Returns 1 | 0: another worker was first, nothing changed
-- Invariant: a change is told if and only if it is made, so that workers which watch at the same time tell it once. A
-- Redis that is full takes it, too: it says why nothing happens.
if ARG.batch_id == '' then
  redis.call('ZREM', ENDED, '')  -- removes nothing; after a removal, what takes memory is not refused
elseif redis.call('ZREM', ENDED, ARG.batch_id) == 0 then
  return 0
end
if ARG.field ~= '' then
  if (redis.call('HGET', STATES, ARG.field) or '') ~= ARG.before then return 0 end
  if ARG.after == '' then redis.call('HDEL', STATES, ARG.field) else redis.call('HSET', STATES, ARG.field, ARG.after) end
end
if ARG.alert ~= '' then redis.call('XADD', ALERTS, 'MAXLEN', ARG.kept, '*', 'e', ARG.alert) end
return 1
