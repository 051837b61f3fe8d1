-- Appends chunks to an open batch: all of them or none.
-- KEYS  SHARED, then queued(line) of each chunk
-- ARGV  1 number that the first chunk gets  2 'park' | 'queue'  3 what APIs it is bound to (msgpack: name -> 'identity
--       address'; those left out: any of that name)  then per chunk: member, payload
-- Returns {'ok', total jobs, chunks} | {'conflict', total jobs, chunks} | {'closed'} | {'missing'}
--       | {'elsewhere', API, 'identity address'}: the batch is bound to another one, nothing was added
-- Notes which APIs the batch uses and is bound to, and whether it is held back until its seal.
-- Invariant: what is written is a prefix of what was submitted; the same call twice appends once.
local first, n = tonumber(ARGV[1]), #KEYS - OWN + 1
local m = redis.call('HMGET', META, 'phase', 'control', 'chunks', 'total', 'full')
if not m[1] then return {'missing'} end
if m[1] ~= 'open' or m[2] == 'cancelled' then return {'closed'} end
local chunks, total = tonumber(m[3]), tonumber(m[4])
if chunks == first + n then return {'ok', total, chunks} end
if chunks ~= first then return {'conflict', total, chunks} end
local bindings = cmsgpack.unpack(ARGV[3])
for api, binding in pairs(bindings) do
  local known = redis.call('HGET', META, 'api:' .. api)
  local identity = bound_identity(known)
  if identity ~= '' and identity ~= bound_identity(binding) then return {'elsewhere', api, known} end
end
local park = ARGV[2] == 'park' or m[2] == 'paused' or m[5]
for i = 1, n do
  local number, member, payload = first + i - 1, ARGV[2 + 2 * i], ARGV[3 + 2 * i]
  local _, count = struct.unpack('>BI4', payload)
  redis.call('HSET', CHUNKS, int(number), payload)
  write_state(int(number), {  -- its count stays known, whatever becomes of the payload
    fence = 0, status = park and 'P' or 'Q', worker = '', count = count, done = 0, failed = 0, claims = 0, deaths = 0,
  })
  if park then redis.call('ZADD', PARKED, int(now_ms), member) else enqueue(KEYS[OWN - 1 + i], member) end
  redis.call('HSETNX', META, 'api:' .. string.match(line_of(member), '^[^@]*'), 1)
  total = total + count
end
for api, binding in pairs(bindings) do redis.call('HSET', META, 'api:' .. api, binding) end
if ARGV[2] == 'park' then redis.call('HSET', META, 'held', 1) end
redis.call('HSET', META, 'chunks', int(first + n), 'total', int(total))
if n > 0 then redis.call('ZADD', OPEN, int(now_ms), string.match(ARGV[4], '^[^/]*')) end
return {'ok', total, first + n}
