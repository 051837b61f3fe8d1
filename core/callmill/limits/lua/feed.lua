-- Take what an API's answers say about its limits.
--
-- KEYS  1 meta hash   2.. one hash per limit
-- ARGV  for each fact: index of the limit (from 1), kind, two numbers:
--         slow     emission us at least, us that it holds: others use the limit too
--         block    us in which no call may start, unless somebody resumes the API; 0: the quota is used up until then
--         aligned  us from now to a beginning of the server's window (may be negative), us by which that may be wrong
--         most     factor by which the pace may grow at most, 0: the limit was found
-- Returns the number of facts that changed something.
--
-- Invariant: facts slow down at once, and never make a pace faster than it is configured. A window that is known for the
-- first time counts as used up.
local changed = 0
for at = 1, #ARGV, 4 do
  local key, kind, first, second = KEYS[tonumber(ARGV[at]) + 1], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local h = redis.call('HMGET', key, 'window', 'amount', 'aligned', 'blur', 'slow', 'slow_until', 'block', 'mode', 'factor')
  if h[1] then
    local window = tonumber(h[1])
    if kind == 'slow' then
      local still = tonumber(h[6] or 0) > now and tonumber(h[5]) or 0
      redis.call('HSET', key, 'slow', text(math.max(first, still)), 'slow_until', text(now + second))
      changed = changed + 1
    elseif kind == 'block' and now + first > tonumber(h[7] or 0) then
      redis.call('HSET', key, 'block', text(now + first), 'blocked_at', text(now))
      changed = changed + 1
    elseif kind == 'aligned' then
      local aligned, known = now + first, tonumber(h[3] or nil)
      local apart = known and math.abs((aligned - known + window / 2) % window - window / 2)
      if not known or second < tonumber(h[4]) or apart > second + tonumber(h[4]) then
        redis.call('HSET', key, 'aligned', text(aligned), 'blur', text(second))
        if not known then
          redis.call('HSET', key, 'turn', math.floor((now - aligned) / window), 'count', h[2])
        else
          redis.call('HSET', key, 'turn', math.floor((now - aligned) / window) + 1, 'count', 0)
        end
        changed = changed + 1
      end
    elseif kind == 'most' and h[8] and h[8] ~= '' then
      redis.call('HSET', key, 'most', first, 'mode', 'hold', 'factor', first, 'good', first, 'since', text(now))
      changed = changed + 1
    end
  end
end
return changed
