-- Part of refused: what an API took of a pace from one refusal to the next, and what that tells of the pace.
--
-- A bucket that was full at both refusals took exactly its rate in between. An API that counts windows refuses for the rest
-- of one: it takes so much from the begin of a window to the next, and a row of refusals shows how long that may be.
--
-- Fields of a limit's hash, times in us:
--   taken, taken_from        calls since when; reserve counts them too
--   waited                   how long no call could start since then, though the API may have taken some
--   row_at, row_until        when the latest row began, and when it is over at the latest
--   row_wave                 which of its waves of refusals was the latest, from 1
--   seen                     the most that taken comes to if the API took only what was in flight at the latest refusal
--   row_blind                by how much it may have been over sooner
--   row_factor               the pace that was refused
--   row_taken, row_from      calls before it, by the pace's own count
--   row_minute, row_minute_from   the same, within the last minute
local taken = {}
local FEW, ENOUGH = 5, 10 -- calls: from fewer little can be told
local ROUNDED_US = 1000000 -- hints are whole seconds
local LEFT = 0.2 -- this part of a window is left, or more, if it began so long ago
local LATE_US = 2000000

-- at: when a call was refused; untold: calls that were taken, of which nobody has told yet; others: calls in flight.
function taken.read(x, at, untold, others)
  for name, value in pairs(read_taken(x.key)) do x[name] = tonumber(value or 0) end
  x.at, x.taken, x.others = at, x.taken + untold, others
end

local function write(x, names)
  local fields = {}
  for _, name in ipairs(names) do
    fields[#fields + 1] = name
    fields[#fields + 1] = text(x[name])
  end
  redis.call('HSET', x.key, unpack(fields))
end

-- A row of refusals of which nothing is known yet. row_at: when it began; wave: which of its waves this is; asked: us that the
-- API wants us to wait, 0: it does not say. minute, minute_from: calls that it took within the last minute, since when.
function taken.begin_row(x, row_at, wave, asked, minute, minute_from)
  x.row_factor, x.row_taken, x.row_from = x.factor, x.taken, math.min(row_at, math.max(x.taken_from, x.row_until))
  x.row_at, x.row_until, x.row_wave = row_at, math.max(x.at + asked, 2 * x.at - row_at), wave
  x.row_minute, x.row_minute_from = minute, minute_from
  x.row_blind = math.max(math.min(asked, ROUNDED_US), 2 * (x.at - row_at))
  write(x, { 'row_at', 'row_until', 'row_blind', 'row_wave', 'row_taken', 'row_from', 'row_minute', 'row_minute_from' })
  redis.call('HSET', x.key, 'row_factor', x.row_factor)
end

-- Another refusal of the row: as each wait is twice as long as the one before, it is over before it lasts twice as long.
-- Returns false where it belongs to another row: calls were taken since, or nobody made any.
function taken.prolong_row(x, wave, asked)
  if wave <= x.row_wave or x.taken > x.seen or x.at > 2 * x.row_until - x.row_at + LATE_US then return false end
  x.row_until, x.row_wave = math.max(x.at + asked, 2 * x.at - x.row_at), wave
  x.row_blind = 2 * (x.at - x.row_at)
  write(x, { 'row_until', 'row_blind', 'row_wave' })
  return true
end

-- If the API counts windows and takes calls again at that time: calls a second in the long run, how far to believe that, 0 to
-- 1, calls a second at most, and how long a window may be, us.
function taken.in_windows(x, again_at)
  local best, highest, period, trust = 0, 0, 0, 0
  for name, from in pairs({ row_taken = x.row_from, row_minute = x.row_minute_from }) do
    local lasted = again_at - from
    local too_long = name == 'row_minute' and again_at - x.row_at < LEFT * lasted -- perhaps nobody wanted more calls then
    if from > 0 and not too_long and x[name] / lasted > best then
      best, highest, period = x[name] / lasted, x[name] / math.max(1, x.at - from), lasted
      trust = math.min(1, x[name] / ENOUGH)
    end
  end
  return best * 1e6, trust, highest * 1e6, period
end

-- Calls a second that the API took since the last refusal, and how far that may be from what it would take, 0 to 1; nil:
-- nothing is known. few: whether few calls tell something, too.
function taken.since_refusal(x, asked, few)
  if x.taken == 0 or x.taken_from == 0 or x.at <= x.taken_from then return nil, 1 end
  local lasted = x.at + asked - x.taken_from
  x.waited = x.waited + x.row_blind + math.min(asked, ROUNDED_US)
  local doubt = math.min(1, 2 * x.waited / lasted + FEW / x.taken)
  return (few or x.taken >= ENOUGH) and x.taken * 1e6 / lasted or nil, doubt
end

function taken.halve(x) -- what was longer ago counts for half
  x.taken, x.taken_from, x.waited = x.taken / 2, (x.at + x.taken_from) / 2, x.waited / 2
end

function taken.forget(x) -- count anew
  x.taken, x.taken_from, x.waited = 0, x.at, 0
end

function taken.write(x)
  x.seen = x.taken + x.others
  write(x, { 'taken', 'taken_from', 'waited', 'seen' })
end
