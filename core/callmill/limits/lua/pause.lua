-- Let no call of this API, or none of one of its keys or models, start before a time, for every worker at once.
--
-- KEYS  META   LIMITS: one hash per limit
-- ARG   pause_us: from now   said_us: since somebody said so   reason   channel
--       scope: what is paused: '' the API, 'key:NAME', 'model:NAME'
-- Returns us of pause left; 0: what is paused was resumed since then.
--
-- Invariant: a pause is only ever lengthened, and one that is told late does not undo a resume. Slots that were granted for
-- the time of an API's pause are void (their holders drop them on the message), so limits that count calls forget their
-- charges; tokens are refunded by the holders, who know them.
local scope = ARG.scope
local pause_field = scope == '' and 'pause' or 'pause:' .. scope
local reason_field = scope == '' and 'reason' or 'reason:' .. scope
local resumed_field = scope == '' and 'resumed' or 'resumed:' .. scope
local meta = read_meta(META, { pause_field, resumed_field })
if now - ARG.said_us <= tonumber(meta[resumed_field] or 0) then return 0 end
local current = tonumber(meta[pause_field] or 0)
local until_us = now + ARG.pause_us
if until_us <= current then return math.ceil(current - now) end

-- The clock is kept with the pause: were TIME set back before it is next looked at, the pause would last longer by as much.
-- The skew is not: reserve has to see that TIME was set back.
redis.call('HSET', META, pause_field, text(until_us), reason_field, ARG.reason, 'now', text(now))
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
