-- Appends chunks to an open batch: all of them or none.
-- KEYS  SHARED, QUEUED: of each chunk's line
-- ARG   first: number that the first chunk gets  park: whether they are held back, else queued
--       bindings: what APIs it is bound to, name -> 'identity address'; those left out: any of that name
--       members, payloads: of each chunk
-- Returns the verdict: 'ok' | 'conflict', both with total jobs, chunks | 'closed' | 'missing' | 'oversize': a payload says
--       that it has more than MAX_CHUNK_JOBS jobs, or does not say how many; nothing was added
--       | 'elsewhere', with api and bound_to, 'identity address': the batch is bound to another one, nothing was added
-- Notes which APIs the batch uses and is bound to, and whether it is held back until its seal.
-- Invariant: what is written is a prefix of what was submitted; the same call twice appends once.
local first, n = ARG.first, #ARG.members
local m = read_filling(META)
if not m.phase then return answer({verdict = 'missing'}) end
if m.phase ~= 'open' or m.control == 'cancelled' then return answer({verdict = 'closed'}) end
local counts = {}
for i, payload in ipairs(ARG.payloads) do
  counts[i] = jobs_of(payload)
  if not counts[i] then return answer({verdict = 'oversize'}) end
end
local chunks, total = tonumber(m.chunks), tonumber(m.total)
if chunks == first + n then return answer({verdict = 'ok', total = total, chunks = chunks}) end
if chunks ~= first then return answer({verdict = 'conflict', total = total, chunks = chunks}) end
for api, binding in pairs(ARG.bindings) do
  local known = redis.call('HGET', META, 'api:' .. api)
  local identity = bound_identity(known)
  if identity ~= '' and identity ~= bound_identity(binding) then
    return answer({verdict = 'elsewhere', api = api, bound_to = known})
  end
end
local park = ARG.park or m.control == 'paused' or m.full
for i, member in ipairs(ARG.members) do
  local number, payload, count = first + i - 1, ARG.payloads[i], counts[i]
  redis.call('HSET', CHUNKS, int(number), payload)
  write_state(int(number), {  -- its count stays known, whatever becomes of the payload
    fence = 0, status = park and 'P' or 'Q', worker = '', count = count, done = 0, failed = 0, claims = 0, deaths = 0,
  })
  if park then redis.call('ZADD', PARKED, int(now_ms), member) else enqueue(QUEUED[i], member) end
  redis.call('HSETNX', META, 'api:' .. string.match(line_of(member), '^[^@]*'), 1)
  total = total + count
end
for api, binding in pairs(ARG.bindings) do redis.call('HSET', META, 'api:' .. api, binding) end
if ARG.park then redis.call('HSET', META, 'held', 1) end
redis.call('HSET', META, 'chunks', int(first + n), 'total', int(total))
if n > 0 then redis.call('ZADD', OPEN, int(now_ms), batch_id()) end
return answer({verdict = 'ok', total = total, chunks = first + n})
