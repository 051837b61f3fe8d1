-- Notes what of a chunk is about to run alone, because its workers died.
-- KEYS  SHARED
-- ARGV  1 chunk number  2 fence  3 '*': all of it, or the offset of a job
-- Returns 1: noted | 0: the lease is somebody else's now
-- Invariant: the deaths that count against a suspect are those of leases that ended while it was noted under their fence;
-- noting the same one again keeps them, noting another one begins anew.
local number, fence = ARGV[1], tonumber(ARGV[2])
local s = read_state(number)
if not s or s.status ~= 'L' or s.fence ~= fence then return 0 end
local _, alone, deaths = read_suspect(number)
write_suspect(number, fence, ARGV[3], alone == ARGV[3] and tonumber(deaths) or 0)
return 1
