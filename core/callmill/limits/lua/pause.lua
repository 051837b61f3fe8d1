-- Let no call of this API start before a time, for every worker at once.
--
-- KEYS  1 meta hash   2.. one hash per limit
-- ARGV  1 us to pause from now   2 reason   3 channel
-- Returns us of pause left.
--
-- Invariant: a pause is only ever lengthened. Slots that were granted for the time of the pause are void (their holders drop
-- them on the message), so limits that count calls forget their charges; tokens are refunded by the holders, who know them.
local meta = redis.call('HMGET', KEYS[1], 'now', 'skew', 'last', 'pause')
local time = redis.call('TIME')
local now = math.max(time[1] * 1000000 + time[2] + tonumber(meta[2] or 0), tonumber(meta[1] or 0))
local current = tonumber(meta[4] or 0)
local until_us = now + tonumber(ARGV[1])
if until_us <= current then return math.ceil(current - now) end

redis.call('HSET', KEYS[1], 'pause', string.format('%.2f', until_us), 'reason', ARGV[2])
if tonumber(meta[3] or 0) < until_us then -- no slot outlives the pause
  for i = 2, #KEYS do
    local h = redis.call('HMGET', KEYS[i], 'tat', 'emission', 'tokens')
    if h[1] and h[2] and h[3] ~= '1' then
      -- 10 ms: the message needs a moment, and what fires until then counts.
      local tat = math.min(tonumber(h[1]), math.max(until_us, now + tonumber(h[2]) + 10000))
      redis.call('HSET', KEYS[i], 'tat', string.format('%.2f', tat))
    end
  end
end
redis.call('PUBLISH', ARGV[3], 'pause ' .. string.format('%.0f', until_us - now) .. ' ' .. ARGV[2])
return math.ceil(until_us - now)
