-- Pauses, resumes or cancels a batch.
-- KEYS  SHARED
-- ARG   control: 'run' | 'paused' | 'cancelled'  batch_id  reason: why, where nobody asked for it
-- Returns 'ok' | 'ended': the batch is over, nothing changed | 'missing'
-- Invariant: cancelled is final; each is the same when done twice. Workers are told by CONTROLS.
local wanted = ARG.control
local m = read_steered(META)
if not m.control then return 'missing' end
if m.ended_ms or m.control == 'cancelled' then
  return m.control == 'cancelled' and wanted == 'cancelled' and 'ok' or 'ended'
end
though_full()
redis.call('HSET', META, 'control', wanted)
redis.call('INCR', CONTROLS)
if wanted == 'cancelled' then
  if ARG.reason ~= '' then redis.call('HSET', META, 'reason', ARG.reason) end
  redis.call('ZREM', OPEN, ARG.batch_id)
  redis.call('UNLINK', CHUNKS, REST, PARKED)  -- leased chunks finish from their worker's memory
  end_if_over()
elseif wanted == 'run' and redis.call('EXISTS', PARKED) == 1 then
  redis.call('SADD', RESUMED, ARG.batch_id)
end
return 'ok'
