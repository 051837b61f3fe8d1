-- Record one change that a person makes at run time, and tell the workers.
--
-- KEYS  CONTROL: hash   HISTORY: stream   META of the limiter
-- ARG   channel   by: whom   what: limits | pause | resume   name of the credential that it is about, '' for the whole API
--       limits: JSON array of texts, '' for the profile's   pause_us: from now, and its reason   history_entries that are
--       kept   endless_us: a pause that lasts longer is one until resumed
-- Returns generation   changed: 1 where something changed, else 0
--
-- The control hash holds generation, limits (absent: the profile's) and, for each name, reason:NAME and by:NAME. The pauses
-- themselves are those of the meta hash, which pause.lua writes, in the same transaction after this script; by:NAME is the
-- author for as long as the reason is the one noted here.
--
-- Invariants: what changes nothing leaves generation and history as they are; generations never repeat, not even when the
-- state is lost in between; a pause is only ever lengthened. All times are us of the clock that reserve.lua keeps in the meta hash.
local by, what, name, reason = ARG.by, ARG.what, ARG.name, ARG.reason
local suffix = name == '' and '' or ':key:' .. name
local pause_field, reason_field = 'pause' .. suffix, 'reason' .. suffix
local meta = read_meta(META, { pause_field, reason_field })
local time = redis.call('TIME')
local now = math.max(time[1] * 1000000 + time[2] + tonumber(meta.skew or 0), tonumber(meta.now or 0))
local function whole(x) return string.format('%.0f', x) end

local function paused() return tonumber(meta[pause_field] or 0), meta[reason_field] or '' end -- until when, and why
local function shown(ends, why) -- us that are left, and the reason
  if ends <= now then return '' end
  return (ends - now > ARG.endless_us and 'endless' or whole(ends - now)) .. ' ' .. why
end

local before, after, message
if what == 'limits' then
  before, after = redis.call('HGET', CONTROL, 'limits') or '', ARG.limits
  if after == '' then redis.call('HDEL', CONTROL, 'limits') else redis.call('HSET', CONTROL, 'limits', after) end
elseif what == 'pause' then
  local ends, why = paused()
  local later = now + ARG.pause_us
  before, after = shown(ends, why), shown(math.max(ends, later), later > ends and reason or why)
  if before ~= after then redis.call('HSET', CONTROL, 'reason:' .. name, reason, 'by:' .. name, by) end
else
  before, after = shown(paused()), ''
  redis.call('HDEL', CONTROL, 'reason:' .. name, 'by:' .. name)
  redis.call('HDEL', META, pause_field, reason_field)
  redis.call('HSET', META, 'resumed' .. suffix, whole(now)) -- what answers said until now blocks nothing
  message = 'resume ' .. (name == '' and '-' or 'key:' .. name)
end

local generation = tonumber(redis.call('HGET', CONTROL, 'generation') or 0)
if before ~= after then
  -- By the clock, so that a worker that knows a generation of a former life does not take a new one for it.
  generation = math.max(generation + 1, math.floor(now / 1000))
  redis.call('HSET', CONTROL, 'generation', whole(generation))
  redis.call('XADD', HISTORY, 'MAXLEN', ARG.history_entries, '*', 'by', by, 'what', what, 'key', name, 'before', before,
    'after', after)
end
if what == 'limits' then message = 'rules ' .. whole(generation) end
if message then redis.call('PUBLISH', ARG.channel, message) end
return answer({ generation = generation, changed = before ~= after and 1 or 0 })
