-- Purpose: add what a worker saw calls cost to what the fleet knows, and tell it what the fleet knows now.
-- KEYS: 1 the hash of the API's tallies.
-- ARGV: 1 the most calls that a tally counts, 2 the most tallies, 3 seconds after which a hash nobody adds to is gone;
--       then for each tally: its name and its six sums, the first one the number of calls (0: only asked for).
-- Returns: the tallies in the order asked, each its sums as one text, separated by spaces.
-- Invariant: no tally counts more calls than ARGV 1; older calls fade in favour of newer ones. There are no more
--            tallies than ARGV 2.
local most_calls, most_tallies = tonumber(ARGV[1]), tonumber(ARGV[2])
local SUMS = 6
local tallies = redis.call('HLEN', KEYS[1])
local told = {}
for at = 4, #ARGV, SUMS + 1 do
  local name, sums = ARGV[at], {}
  for n = 1, SUMS do
    sums[n] = tonumber(ARGV[at + n])
  end
  local text = redis.call('HGET', KEYS[1], name)
  if text then
    local calls = tonumber(string.match(text, '^%S+'))
    local kept = calls > 0 and math.max(0, math.min(1, (most_calls - sums[1]) / calls)) or 0
    local n = 0
    for old in string.gmatch(text, '%S+') do
      n = n + 1
      sums[n] = sums[n] + kept * tonumber(old)
    end
  end
  for n = 1, SUMS do
    sums[n] = string.format('%.9g', sums[n])
  end
  local joined = table.concat(sums, ' ')
  if tonumber(ARGV[at + 1]) > 0 and (text or tallies < most_tallies) then
    redis.call('HSET', KEYS[1], name, joined)
    tallies = tallies + (text and 0 or 1)
  end
  told[#told + 1] = joined
end
if tallies > 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return told
