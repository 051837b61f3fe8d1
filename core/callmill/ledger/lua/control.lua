-- Pauses, resumes or cancels a batch.
-- KEYS  SHARED
-- ARGV  1 'run' | 'paused' | 'cancelled'  2 batch id
-- Returns {'ok'} | {'ended'}: the batch is over, nothing changed | {'missing'}
-- Invariant: cancelled is final; each is the same when done twice.
local m = redis.call('HMGET', META, 'control', 'ended_ms')
if not m[1] then return {'missing'} end
if m[2] then return {m[1] == 'cancelled' and ARGV[1] == 'cancelled' and 'ok' or 'ended'} end
if m[1] == 'cancelled' then return {ARGV[1] == 'cancelled' and 'ok' or 'ended'} end
though_full()
redis.call('HSET', META, 'control', ARGV[1])
if ARGV[1] == 'cancelled' then
  redis.call('UNLINK', CHUNKS, REST, PARKED)  -- leased chunks finish from their worker's memory
  end_if_over()
elseif ARGV[1] == 'run' and redis.call('EXISTS', PARKED) == 1 then
  redis.call('SADD', RESUMED, ARGV[2])
end
return {'ok'}
