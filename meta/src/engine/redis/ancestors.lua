-- The directories above an inode, nearest first.
--
-- KEYS[1]: the inode's attribute record; ARGV: prefix of the volume's keys, the inode, the root, `.trash`,
-- the most steps to take. Answer: inode, attribute record, inode, attribute record, ...
local prefix, at, root, trash = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local raw, found = false, {}
if at ~= root and at ~= trash then raw = redis.call('GET', KEYS[1]) end
for _ = 1, tonumber(ARGV[5]) do
  -- The parent is in bytes 64 to 71; a record of an old release ends before it.
  if not raw or #raw < 71 or at == root or at == trash then break end
  at = decimal(raw, 64)
  raw = at ~= '0' and redis.call('GET', prefix .. 'i' .. at)
  if not raw then break end
  found[#found + 1] = at
  found[#found + 1] = raw
end
return found
