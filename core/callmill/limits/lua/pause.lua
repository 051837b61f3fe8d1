-- Let no call of this API, or none of one of its keys or models, start before a time, for every worker at once.
--
-- KEYS  1 meta hash   2.. one hash per limit
-- ARGV  1 us to pause from now   2 reason   3 channel   4 what is paused: '' the API, 'key:NAME', 'model:NAME'
-- Returns us of pause left.
--
-- Invariant: a pause is only ever lengthened. Slots that were granted for the time of an API's pause are void (their holders
-- drop them on the message), so limits that count calls forget their charges; tokens are refunded by the holders, who know
-- them.
local scope = ARGV[4]
local pause_field = scope == '' and 'pause' or 'pause:' .. scope
local reason_field = scope == '' and 'reason' or 'reason:' .. scope
local meta = redis.call('HMGET', M, 'last', pause_field)
local current = tonumber(meta[2] or 0)
local until_us = now + tonumber(ARGV[1])
if until_us <= current then return math.ceil(current - now) end

-- The clock is kept with the pause: were TIME set back before it is next looked at, the pause would last longer by as much.
-- The skew is not: reserve has to see that TIME was set back.
redis.call('HSET', M, pause_field, text(until_us), reason_field, ARGV[2], 'now', text(now))
if scope == '' and tonumber(meta[1] or 0) < until_us then -- no slot outlives the pause
  for i = 2, #KEYS do
    local h = redis.call('HMGET', KEYS[i], 'tat', 'charge', 'column')
    if h[1] and h[2] and h[3] == '1' then
      -- 10 ms: the message needs a moment, and what fires until then counts.
      local tat = math.min(tonumber(h[1]), math.max(until_us, now + tonumber(h[2]) + 10000))
      redis.call('HSET', KEYS[i], 'tat', text(tat))
      redis.call('HDEL', KEYS[i], 'holes')
    end
  end
end
redis.call('PUBLISH', ARGV[3],
  'pause ' .. string.format('%.0f', until_us - now) .. ' ' .. (scope == '' and '-' or scope) .. ' ' .. ARGV[2])
return math.ceil(until_us - now)
