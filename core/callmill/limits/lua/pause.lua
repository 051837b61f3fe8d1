-- Let no call of this API, or none of one of its keys or models, start before a time, for every worker at once.
--
-- KEYS  META   PAUSED: zset model -> until when it is, or was, paused   LIMITS: one hash per limit, for a pause of the API
-- ARG   pause_us: from now   said_us: since somebody said so   reason   channel
--       scope: what is paused: '' the API, 'key:NAME', 'model:NAME'
--       claim_us: from now, how long an answer asked for if that is longer, else 0: more than one answer alone is believed
--       guessed_us: so much of the pause, at its end, nobody asked for; refused: the class of the call that was refused; see
--         ease.lua
--       started_us: since the call was sent that was answered so   witness: the job that made it, '' unknown
-- Returns us of pause left; 0: what is paused was resumed since then.
--
-- Invariant: a pause is only ever lengthened, and one that is told late does not undo a resume. Slots that were granted for
-- the time of an API's pause are void (their holders drop them on the message), so limits that count calls forget their
-- charges; tokens are refunded by the holders, who know them. A claim is believed when the call of another job, sent after
-- the pause that the first one was believed for, is answered alike: then the shorter of both claims holds. The same job
-- asked again proves nothing, for the answer may be about the job. A call that the API takes, and a resume, end a claim.
local CLOSE_US = 20000 -- clocks of workers differ from this one by less
local GONE_AFTER_US, MOST_GONE, KEPT_MS = 600000000, 100, 2764800000 -- what is told of models is forgotten by and by
local scope = ARG.scope
local suffix = scope == '' and '' or ':' .. scope
local pause_field, reason_field, resumed_field, claim_field =
  'pause' .. suffix, 'reason' .. suffix, 'resumed' .. suffix, 'claim' .. suffix
local meta = read_meta(META, { pause_field, resumed_field, claim_field })
local resumed = tonumber(meta[resumed_field] or 0)
if now - ARG.said_us <= resumed then return 0 end
local current = tonumber(meta[pause_field] or 0)
local until_us = now + ARG.pause_us

local guessed = ARG.guessed_us
if ARG.claim_us > ARG.pause_us then
  local claimed, said, again, witness = string.match(meta[claim_field] or '', '^(%S+) (%S+) (%S+) (.*)$')
  claimed = tonumber(claimed or 0)
  if claimed <= now or tonumber(said) <= resumed then claimed = nil end
  local asked_again = claimed and now - ARG.started_us >= tonumber(again) - CLOSE_US
  if asked_again and witness ~= ARG.witness then
    until_us = math.max(until_us, math.min(claimed, now + ARG.claim_us))
    guessed = until_us - now - ARG.pause_us -- both may be of one class: one that was not refused may ask sooner
  elseif asked_again or not claimed then
    redis.call('HSET', META, claim_field, table.concat({ text(now + ARG.claim_us), text(now - ARG.said_us),
      text(math.max(until_us, current)), claimed and witness or ARG.witness }, ' '))
  end
end
if until_us <= current then return math.ceil(current - now) end

-- The clock is kept with the pause: were TIME set back before it is next looked at, the pause would last longer by as much.
-- The skew is not: reserve has to see that TIME was set back.
redis.call('HSET', META, pause_field, text(until_us), reason_field, ARG.reason, 'now', text(now))
redis.call('PERSIST', META) -- whoever asks for starts next says how long it is kept
if string.sub(scope, 1, 6) == 'model:' then
  redis.call('ZADD', PAUSED, until_us, scope)
  redis.call('PEXPIRE', PAUSED, KEPT_MS)
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', PAUSED, '-inf', now - GONE_AFTER_US, 'LIMIT', 0, MOST_GONE)) do
    redis.call('ZREM', PAUSED, gone)
    redis.call('HDEL', META, 'pause:' .. gone, 'reason:' .. gone, 'guess:' .. gone, 'claim:' .. gone)
  end
end
if guessed > 0 then
  redis.call('HSET', META, 'guess' .. suffix,
    table.concat({ text(until_us), text(now - ARG.said_us), text(until_us - guessed), ARG.refused }, ' '))
end
if scope == '' and tonumber(meta.last or 0) < until_us then -- no slot outlives the pause
  for _, key in ipairs(LIMITS) do
    local h = read_limit(key)
    if h.tat and h.charge and h.column == '1' then
      -- 10 ms: the message needs a moment, and what fires until then counts.
      local tat = math.min(tonumber(h.tat), math.max(until_us, now + tonumber(h.charge) + 10000))
      redis.call('HSET', key, 'tat', text(tat))
      redis.call('HDEL', key, 'holes')
    end
  end
end
redis.call('PUBLISH', ARG.channel,
  'pause ' .. string.format('%.0f', until_us - now) .. ' ' .. (scope == '' and '-' or scope) .. ' ' .. ARG.reason)
return math.ceil(until_us - now)
