-- Drops outcomes that were read; a batch that was held because of them goes on when half of its bound is free.
-- KEYS  SHARED
-- ARG   batch_id  read: id of the newest entry of the stream that was read; that entry itself stays
-- Returns 1: the batch goes on, unpark it | 0
-- Invariant: unread bytes = all bytes ever added - those up to what was read, in whatever order and however often it is
-- released.
redis.call('XTRIM', OUTCOMES, 'MINID', ARG.read)
local m = read_filled(META)
if not m.out_bytes then return 0 end
local released = tonumber(m.out_bytes)
local first = redis.call('XRANGE', OUTCOMES, '-', '+', 'COUNT', 1)[1]
if first then
  local id, fields, entry = first[1], first[2], {}
  for i = 1, #fields, 2 do entry[fields[i]] = fields[i + 1] end
  if entry.t then released = tonumber(entry.t) - (id == ARG.read and 0 or #entry.b) end
end
released = math.max(released, tonumber(m.released_bytes or 0))
redis.call('HSET', META, 'released_bytes', int(released))
if not m.full or tonumber(m.out_bytes) - released > tonumber(m.max_unread_bytes) / 2 then return 0 end
redis.call('HDEL', META, 'full')
redis.call('INCR', CONTROLS)
if m.control ~= 'run' or redis.call('EXISTS', PARKED) == 0 then return 0 end
redis.call('SADD', RESUMED, ARG.batch_id)
return 1
