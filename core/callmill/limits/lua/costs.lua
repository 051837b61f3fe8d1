-- Purpose: add what a worker saw calls cost to what the fleet knows, and tell it what the fleet knows now.
-- KEYS: COSTS, the hash of the API's tallies.
-- ARG: most_calls that a tally counts, most_tallies, kept_s: seconds after which a hash nobody adds to is gone; tallies,
--      each: kind, its name; sums, the first of them the number of calls (0: only asked for).
-- Returns: the tallies in the order asked, each its sums as one text, separated by spaces.
-- Invariant: no tally counts more calls than most_calls; older calls fade in favour of newer ones. There are no more
--            tallies than most_tallies.
local tallies = redis.call('HLEN', COSTS)
local told = {}
for _, tally in ipairs(ARG.tallies) do
  local sums, more_calls = tally.sums, tally.sums[1]
  local text = redis.call('HGET', COSTS, tally.kind)
  if text then
    local calls = tonumber(string.match(text, '^%S+'))
    local kept = calls > 0 and math.max(0, math.min(1, (ARG.most_calls - more_calls) / calls)) or 0
    local n = 0
    for old in string.gmatch(text, '%S+') do
      n = n + 1
      sums[n] = sums[n] + kept * tonumber(old)
    end
  end
  for n, sum in ipairs(sums) do
    sums[n] = string.format('%.9g', sum)
  end
  local joined = table.concat(sums, ' ')
  if more_calls > 0 and (text or tallies < ARG.most_tallies) then
    redis.call('HSET', COSTS, tally.kind, joined)
    tallies = tallies + (text and 0 or 1)
  end
  told[#told + 1] = joined
end
if tallies > 0 then
  redis.call('EXPIRE', COSTS, ARG.kept_s)
end
return told
