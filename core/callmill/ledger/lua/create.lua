-- Opens a new batch.
-- KEYS  SHARED, BATCHES, DEADLINES
-- ARG   batch_id  name  retention_ms  priority  tenant ('' = nobody)  deadline_ms (0 = none)
--       max_unread_bytes: of outcomes, beyond which it is held (0 = any number)  own_lines: whether its lines are its own,
--       else shared
-- Returns 1 | 0: a batch of this id is there already, nothing changed
if redis.call('EXISTS', META) == 1 then return 0 end
redis.call('HSET', META, 'format', FORMAT, 'name', ARG.name, 'phase', 'open', 'control', 'run', 'created_ms', int(now_ms),
  'retention_ms', int(ARG.retention_ms), 'total', 0, 'chunks', 0, 'succeeded', 0, 'failed', 0, 'calls', 0, 'retries', 0,
  'throttled', 0, 'leased', 0, 'priority', ARG.priority, 'tenant', ARG.tenant, 'deadline_ms', int(ARG.deadline_ms),
  'max_unread_bytes', int(ARG.max_unread_bytes))
if ARG.own_lines then redis.call('HSET', META, 'own_lines', 1) end
redis.call('ZADD', BATCHES, int(now_ms), ARG.batch_id)
redis.call('ZADD', OPEN, int(now_ms), ARG.batch_id)
redis.call('ZADD', ACTIVE, int(now_ms), ARG.batch_id)
if ARG.deadline_ms ~= 0 then redis.call('ZADD', DEADLINES, int(ARG.deadline_ms), ARG.batch_id) end
return 1
