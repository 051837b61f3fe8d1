-- Pauses, resumes or cancels a batch.
-- KEYS  SHARED
-- ARGV  1 'run' | 'paused' | 'cancelled'  2 batch id  3 why, where nobody asked for it
-- Returns {'ok'} | {'ended'}: the batch is over, nothing changed | {'missing'}
-- Invariant: cancelled is final; each is the same when done twice. Workers are told by CONTROLS.
local m = redis.call('HMGET', META, 'control', 'ended_ms')
if not m[1] then return {'missing'} end
if m[2] then return {m[1] == 'cancelled' and ARGV[1] == 'cancelled' and 'ok' or 'ended'} end
if m[1] == 'cancelled' then return {ARGV[1] == 'cancelled' and 'ok' or 'ended'} end
though_full()
redis.call('HSET', META, 'control', ARGV[1])
redis.call('INCR', CONTROLS)
if ARGV[1] == 'cancelled' then
  if ARGV[3] ~= '' then redis.call('HSET', META, 'reason', ARGV[3]) end
  redis.call('ZREM', OPEN, ARGV[2])
  redis.call('UNLINK', CHUNKS, REST, PARKED)  -- leased chunks finish from their worker's memory
  end_if_over()
elseif ARGV[1] == 'run' and redis.call('EXISTS', PARKED) == 1 then
  redis.call('SADD', RESUMED, ARGV[2])
end
return {'ok'}
