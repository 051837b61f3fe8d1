-- Says what a webhook has yet to be told, and lets one worker at a time tell it.
-- KEYS  ALERTS  SENT  SENDER of this webhook
-- ARG   webhook: its name  worker  lease_ms: how long it keeps the others from telling  told: id of the entry that it has
--       told since it asked last ('' = none)  limit: entries at most
-- Returns entries of the stream as XRANGE has them; none: there is nothing, or another worker tells it
-- Invariant: what was told once is not told again by those who ask later, and nothing is passed over untold.
redis.call('HDEL', SENT, '')  -- removes nothing; after a removal, what takes memory is not refused
local sender = redis.call('GET', SENDER)
if sender and sender ~= ARG.worker then return {} end

local function is_later(a, b)
  local a_ms, a_n = string.match(a, '(%d+)-(%d+)')
  local b_ms, b_n = string.match(b, '(%d+)-(%d+)')
  return tonumber(a_ms) > tonumber(b_ms) or (a_ms == b_ms and tonumber(a_n) > tonumber(b_n))
end

local last = redis.call('HGET', SENT, ARG.webhook)
if last and ARG.told ~= '' and is_later(ARG.told, last) then
  last = ARG.told
  redis.call('HSET', SENT, ARG.webhook, last)
end
if not last then  -- new here: what came before it is not for it
  local newest = redis.call('XREVRANGE', ALERTS, '+', '-', 'COUNT', 1)[1]
  last = newest and newest[1] or '0-0'
  redis.call('HSET', SENT, ARG.webhook, last)
end
local entries = redis.call('XRANGE', ALERTS, '(' .. last, '+', 'COUNT', ARG.limit)
if #entries == 0 then
  if sender then redis.call('DEL', SENDER) end
else
  redis.call('SET', SENDER, ARG.worker, 'PX', ARG.lease_ms)
end
return entries
