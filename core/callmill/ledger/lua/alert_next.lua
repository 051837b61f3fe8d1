-- Says what a webhook has yet to be told, and lets one worker at a time tell it.
-- KEYS  1 ALERTS  2 ALERTS_SENT  3 the sender of this webhook
-- ARGV  1 name of the webhook  2 worker  3 how long it keeps the others from telling (ms)  4 id of the entry that it has
--       told since it asked last ('' = none)  5 entries at most
-- Returns entries of the stream as XRANGE has them; none: there is nothing, or another worker tells it
-- Invariant: what was told once is not told again by those who ask later, and nothing is passed over untold.
redis.call('HDEL', KEYS[2], '')  -- removes nothing; after a removal, what takes memory is not refused
local sender = redis.call('GET', KEYS[3])
if sender and sender ~= ARGV[2] then return {} end

local function is_later(a, b)
  local a_ms, a_n = string.match(a, '(%d+)-(%d+)')
  local b_ms, b_n = string.match(b, '(%d+)-(%d+)')
  return tonumber(a_ms) > tonumber(b_ms) or (a_ms == b_ms and tonumber(a_n) > tonumber(b_n))
end

local last = redis.call('HGET', KEYS[2], ARGV[1])
if last and ARGV[4] ~= '' and is_later(ARGV[4], last) then
  last = ARGV[4]
  redis.call('HSET', KEYS[2], ARGV[1], last)
end
if not last then  -- new here: what came before it is not for it
  local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  last = newest and newest[1] or '0-0'
  redis.call('HSET', KEYS[2], ARGV[1], last)
end
local entries = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', ARGV[5])
if #entries == 0 then
  if sender then redis.call('DEL', KEYS[3]) end
else
  redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
end
return entries
