-- Binds a batch to another API of a name. Its chunks follow: follow.lua.
-- KEYS  SHARED, MOVING
-- ARG   api: its name  binding: what it is bound to from now on, 'identity address'  own_lines: whether its lines become its
--       own, else they stay as they are
-- Returns 1 | 0: it does not use that API, or was cancelled; nothing changed
-- Invariants: the same call twice changes nothing more. Until every queued chunk is in the line that follows, the batch is
-- in MOVING, and META's fields was:NAME say in which other lines they may be. Workers are told by CONTROLS: what is leased
-- goes to its new line when it is given up, and so does what is parked when it is queued.
local field = 'api:' .. ARG.api
if redis.call('HEXISTS', META, field) == 0 or control() == 'cancelled' then return 0 end
local own_lines = redis.call('HGET', META, 'own_lines')
local gets_own = ARG.own_lines and not own_lines
if redis.call('HGET', META, field) == ARG.binding and not gets_own then return 1 end

-- Adds the line that an API's chunks leave to those that they left before: its identity or '-', and '/own'.
local function note_former(api)
  local identity = bound_identity(redis.call('HGET', META, 'api:' .. api))
  local left = (identity == '' and '-' or identity) .. (own_lines and '/own' or '')
  local was = redis.call('HGET', META, 'was:' .. api)
  for known in string.gmatch(was or '', '%S+') do
    if known == left then return end
  end
  redis.call('HSET', META, 'was:' .. api, was and was .. ' ' .. left or left)
end

if gets_own then
  for _, name in ipairs(redis.call('HKEYS', META)) do
    if string.sub(name, 1, 4) == 'api:' then note_former(string.sub(name, 5)) end
  end
  redis.call('HSET', META, 'own_lines', 1)
else
  note_former(ARG.api)
end
redis.call('HSET', META, field, ARG.binding)
redis.call('ZADD', MOVING, int(now_us), batch_id())
redis.call('INCR', CONTROLS)
return 1
