//! Files of the container's own, which cover what the image has in their places.

use super::Compiler;
use crate::error::Result;
use crate::sys::calls::At;
use crate::sys::fs;
use crate::sys::program::Argument;

impl Compiler<'_, '_> {
    /// Mounts a file of memory over `path`, so that nothing of it is ever among what the container wrote.
    pub(super) fn own_file(&mut self, path: &str, contents: &[u8], mode: u32) -> Result<()> {
        let program = &mut self.program;
        // It lives in the tmpfs of /dev, under a name that is gone before the application comes, and that one which
        // runs already cannot know. Mounts of files without a name are refused.
        let name = &format!("/dev/.{}", fs::unique());
        let file = program.create_new_file(At::Cwd, name, mode)?;
        program.write(file, contents);
        program.close(file);
        program.release(file);
        let tree = program.clone_tree(At::Cwd, name, false)?;
        self.cover_file(tree.into(), path)?;
        self.program.unlink(At::Cwd, name)
    }

    /// Mounts a file over `path`, which is made if it is not there.
    pub(super) fn cover_file(&mut self, tree: Argument, path: &str) -> Result<()> {
        self.parents(path)?;
        let program = &mut self.program;
        // A link there is covered itself, wherever it leads.
        let mounted = program.try_move_mount(tree, At::Cwd, path)?;
        let absent = program.if_failed(mounted);
        let done = program.jump();
        program.land(absent);
        program.touch(At::Cwd, path, 0o644)?;
        program.move_mount(tree, At::Cwd, path)?;
        program.land(done);
        Ok(())
    }
}
