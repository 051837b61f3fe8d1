-- Forget what a row of refusals taught of an API's paces: they were about one kind of calls, others were taken meanwhile.
--
-- KEYS  META   LIMITS: one hash per limit that held for the calls
-- ARG   channel   began_us: since the first of the refusals
-- Returns the number of paces that changed.
--
-- Invariant: a pace that was written down is what is written, or what it was when the refusals began; one that is learned is
-- what it was then, or none.
local began, changed = now - ARG.began_us, 0
for _, key in ipairs(LIMITS) do
  local h = read_limit(key)
  if h.mode and h.mode ~= '' and h.quota ~= '1' then
    local is_written, before = tonumber(h.most or 1) == 1, tonumber(h.row_factor or 0)
    if tonumber(h.learned_at or 0) >= began then
      redis.call('HSET', key, 'mode', '', 'factor', is_written and 1 or h.most)
      redis.call('HDEL', META, 'pace:' .. string.match(key, '}:limit:(.*)$'))
      if not is_written then
        redis.call('HDEL', META, 'learned_pace')
        redis.call('PUBLISH', ARG.channel, 'learned')
      end
      changed = changed + 1
    elseif tonumber(h.row_at or 0) >= began and before > tonumber(h.factor or 1) then
      redis.call('HSET', key, 'factor', before, 'good', before, 'sure', before)
      changed = changed + 1
    end
  end
end
return changed
