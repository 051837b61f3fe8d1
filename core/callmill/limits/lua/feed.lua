-- Take what an API's answers say about its limits.
--
-- KEYS  1 meta hash   2.. one hash per limit
-- ARGV  1 channel   2.. for each fact: index of the limit (from 1), kind, two numbers:
--         slow     emission us at least, us that it holds: others use the limit too
--         block    us in which no call may start, unless somebody resumes the API; 0: the quota is used up until then
--         aligned  us from now to a beginning of the server's window (may be negative), us by which that may be wrong
--         most     factor by which the pace may grow at most: the limit was found; a pace that nobody wrote down begins
-- Returns the number of facts that changed something.
--
-- Invariant: facts slow down at once, and never make a pace faster than it is configured. When it is learnt
-- where windows begin, the current one counts as used up. What is learnt of them holds for this life of the state only.
local DRIFT = 1e-4 -- clocks drift apart by less
local boot = redis.call('HGET', M, 'boot') or ''
local changed = 0
for at = 2, #ARGV, 4 do
  local key, kind, first, second = KEYS[tonumber(ARGV[at]) + 1], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local h = redis.call('HMGET', key, 'window', 'amount', 'aligned', 'blur', 'slow', 'slow_until', 'block', 'mode', 'most', 'tat',
    'life', 'aligned_at')
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
      local aligned, known = now + first, h[11] == boot and tonumber(h[3] or nil)
      local blur = known and tonumber(h[4]) + DRIFT * (now - tonumber(h[12]))
      local apart = known and (aligned - known + window / 2) % window - window / 2
      if not known or math.abs(apart) > second + blur then
        -- What is booked already was spaced for windows that begin elsewhere: the last one it may lie in is full too.
        local turn = math.floor((math.max(now, tonumber(h[10] or 0)) + second - aligned) / window)
        redis.call('HSET', key, 'turn', turn, 'count', h[2])
      elseif second < blur then -- the same windows, better known
        aligned = known + apart
      else
        aligned = nil
      end
      if aligned then
        redis.call('HSET', key, 'aligned', text(aligned), 'aligned_at', text(now), 'blur', text(second), 'life', boot)
        changed = changed + 1
      end
    elseif kind == 'most' and math.abs(first - tonumber(h[9] or 0)) > first / 1e6 then
      redis.call('HSET', key, 'most', first, 'mode', 'hold', 'factor', first, 'good', first, 'sure', first,
        'top', first, 'since', text(now), 'drop', 0.02, 'reach', 1)
      redis.call('HSET', M, 'pace:' .. string.match(key, '}:limit:(.*)$'),
        string.format('%.4g %.0f 0', tonumber(h[2]) * first * 1000000 / window, now))
      if not h[8] or h[8] == '' then
        redis.call('HSET', key, 'learned_at', text(now))
        redis.call('HSET', M, 'learned_pace', 1)
        redis.call('PUBLISH', ARGV[1], 'learned')
      end
      changed = changed + 1
    end
  end
end
return changed
