-- Closes a batch for new jobs; from here on it can become complete.
-- KEYS  SHARED
-- ARG   batch_id  chunks that were written to it (nil = however many it has)
-- Returns the verdict: 'ok', with total jobs | 'closed' (cancelled) | 'missing'
--       | 'short', with chunks: it has fewer, for this server lost some
-- Invariant: sealing twice changes nothing; a batch that lost jobs is not sealed by who knows how many it had.
local m = read_filling(META)
if not m.phase then return answer({verdict = 'missing'}) end
if m.control == 'cancelled' then return answer({verdict = 'closed'}) end
if m.phase == 'open' then
  local chunks = tonumber(m.chunks)
  if ARG.chunks and chunks < ARG.chunks then return answer({verdict = 'short', chunks = chunks}) end
  redis.call('ZREM', OPEN, ARG.batch_id)  -- and, being a removal, lets a Redis that is full take the rest
  redis.call('HSET', META, 'phase', 'sealed', 'sealed_ms', int(now_ms))
  if m.control == 'run' and redis.call('EXISTS', PARKED) == 1 then redis.call('SADD', RESUMED, ARG.batch_id) end
  end_if_over()
end
return answer({verdict = 'ok', total = tonumber(m.total)})
