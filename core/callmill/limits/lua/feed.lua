-- Take what an API's answers say about its limits.
--
-- KEYS  META   LIMITS: one hash per limit
-- ARG   channel   facts, each: limit: its place in LIMITS   kind, with two numbers, first and second:
--         slow     emission us at least, us that it holds: others use the limit too
--         block    us in which no call may start, unless somebody resumes the API; us since the answer said so. More than
--                  an hour is believed when an answer says so again after that hour: then the shorter of both
--         aligned  us from now to a beginning of the server's window (may be negative), us by which that may be wrong
--         most     factor by which the pace may grow at most: the limit was found; a pace that nobody wrote down begins
-- Returns the number of facts that changed something.
--
-- Invariant: facts slow down at once, and never make a pace faster than it is configured. When it is learnt
-- where windows begin, the current one counts as used up. What is learnt of them holds for this life of the state only.
-- What an answer said before somebody resumed the API blocks nothing, told late or not.
local DRIFT = 1e-4 -- clocks drift apart by less
local meta = read_meta(META)
local UNCONFIRMED_US = 3600000000
local boot, resumed = meta.boot or '', tonumber(meta.resumed or 0)
local changed = 0
for _, fact in ipairs(ARG.facts) do
  local key, kind, first, second = LIMITS[fact.limit], fact.kind, fact.first, fact.second
  local h = read_limit(key)
  if h.window then
    local window = tonumber(h.window)
    if kind == 'slow' then
      local still = tonumber(h.slow_until or 0) > now and tonumber(h.slow) or 0
      redis.call('HSET', key, 'slow', text(math.max(first, still)), 'slow_until', text(now + second))
      changed = changed + 1
    elseif kind == 'block' then
      local said_at, known_at = now - second, tonumber(h.blocked_at or 0)
      local blocked_until = known_at > resumed and tonumber(h.block) or 0
      local block, claimed = now + first, tonumber(h.claimed or 0)
      if block > now + UNCONFIRMED_US then
        if known_at <= resumed or claimed <= now or said_at < tonumber(h.claim_again or 0) then
          block = now + UNCONFIRMED_US -- the call that is made then is the second witness
          if known_at <= resumed or claimed <= now then
            redis.call('HSET', key, 'claimed', text(now + first), 'claim_again', text(block))
          end
        else
          block = math.min(block, claimed)
        end
      end
      if said_at > resumed and block > blocked_until then
        redis.call('HSET', key, 'block', text(block), 'blocked_at', text(said_at))
        changed = changed + 1
      end
    elseif kind == 'aligned' then
      local aligned, known = now + first, h.life == boot and tonumber(h.aligned or nil)
      local blur = known and tonumber(h.blur) + DRIFT * (now - tonumber(h.aligned_at))
      local apart = known and (aligned - known + window / 2) % window - window / 2
      if not known or math.abs(apart) > second + blur then
        -- What is booked already was spaced for windows that begin elsewhere: the last one it may lie in is full too.
        local turn = math.floor((math.max(now, tonumber(h.tat or 0)) + second - aligned) / window)
        redis.call('HSET', key, 'turn', turn, 'count', h.amount)
      elseif second < blur then -- the same windows, better known
        aligned = known + apart
      else
        aligned = nil
      end
      if aligned then
        redis.call('HSET', key, 'aligned', text(aligned), 'aligned_at', text(now), 'blur', text(second), 'life', boot)
        changed = changed + 1
      end
    elseif kind == 'most' and math.abs(first - tonumber(h.most or 0)) > first / 1e6 then
      redis.call('HSET', key, 'most', first, 'mode', 'hold', 'factor', first, 'good', first, 'sure', first,
        'top', first, 'since', text(now), 'drop', 0.02, 'reach', 1)
      redis.call('HSET', META, 'pace:' .. string.match(key, '}:limit:(.*)$'),
        string.format('%.4g %.0f 0', tonumber(h.amount) * first * 1000000 / window, now))
      if not h.mode or h.mode == '' then
        redis.call('HSET', key, 'learned_at', text(now))
        redis.call('HSET', META, 'learned_pace', 1)
        redis.call('PUBLISH', ARG.channel, 'learned')
      end
      changed = changed + 1
    end
  end
end
return changed
