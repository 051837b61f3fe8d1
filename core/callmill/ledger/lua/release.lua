-- Drops outcomes that were read; a batch that was held because of them goes on when half of its bound is free.
-- KEYS  SHARED
-- ARGV  1 batch id  2 id of the newest entry of the stream that was read; that entry itself stays
-- Returns 1: the batch goes on, unpark it | 0
-- Invariant: unread bytes = all bytes ever added - those up to what was read, in whatever order and however often it is
-- released.
redis.call('XTRIM', OUT, 'MINID', ARGV[2])
local m = redis.call('HMGET', META, 'out_bytes', 'max_unread_bytes', 'full', 'control', 'released_bytes')
if not m[1] then return 0 end
local released = tonumber(m[1])
local first = redis.call('XRANGE', OUT, '-', '+', 'COUNT', 1)[1]
if first then
  local entry = {}
  for i = 1, #first[2], 2 do entry[first[2][i]] = first[2][i + 1] end
  if entry.t then released = tonumber(entry.t) - (first[1] == ARGV[2] and 0 or #entry.b) end
end
released = math.max(released, tonumber(m[5] or 0))
redis.call('HSET', META, 'released_bytes', int(released))
if not m[3] or tonumber(m[1]) - released > tonumber(m[2]) / 2 then return 0 end
redis.call('HDEL', META, 'full')
redis.call('INCR', CONTROLS)
if m[4] ~= 'run' or redis.call('EXISTS', PARKED) == 0 then return 0 end
redis.call('SADD', RESUMED, ARGV[1])
return 1
